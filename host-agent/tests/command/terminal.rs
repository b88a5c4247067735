//! A command with a terminal: raw while it runs, and as it was when it is over, however it is over.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::home::{Home, eventually, finish, pair};

/// `hospes` on a terminal of 100 columns and 30 rows; the terminal's two ends.
fn on_terminal(home: &Home, words: &[&str]) -> (Child, File, OwnedFd) {
    let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
    let end = || Stdio::from(slave.try_clone().unwrap());
    let mut command = home.command(words);
    command.env("TERM", "xterm-test").stdin(end()).stdout(end()).stderr(end());
    (command.spawn().unwrap(), File::from(master), slave)
}

fn is_cooked(terminal: &OwnedFd) -> bool {
    tcgetattr(terminal)
        .unwrap()
        .local_flags
        .contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
}

fn read_until(master: &mut File, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        let mut bytes = [0; 1024];
        let n = master.read(&mut bytes).unwrap();
        seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    seen
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn keys_are_bytes_while_it_runs_and_the_terminal_is_given_back() {
    let (home, guest) = pair();
    let (child, mut master, terminal) = on_terminal(&home, &["exec", "-t", "dev", "cat"]);
    eventually("raw mode", || !is_cooked(&terminal));
    // Ctrl-C and Ctrl-Z are keys like others to the guest.
    master.write_all(b"a\x03\x1ab\r").unwrap();
    read_until(&mut master, "a\x03\x1ab\r");
    let asked = guest.last_exec().terminal.unwrap();
    assert_eq!((asked.term.as_str(), asked.size.cols, asked.size.rows), ("xterm-test", 100, 30));
    signal(&child, Signal::SIGHUP);
    assert_eq!(finish(child).status.code(), Some(129));
    assert!(is_cooked(&terminal));
}

#[test]
fn a_lost_guest_gives_the_terminal_back() {
    let (home, _guest) = pair();
    let (child, mut master, terminal) = on_terminal(&home, &["shell", "dev", "cut"]);
    read_until(&mut master, "connection was lost");
    assert_eq!(finish(child).status.code(), Some(125));
    assert!(is_cooked(&terminal));
}

#[test]
fn a_terminal_is_not_forwarded_without_being_asked_for() {
    let (home, guest) = pair();
    let (child, _master, terminal) = on_terminal(&home, &["exec", "dev", "cat"]);
    // The played cat ends at once, because its stdin is not ours.
    assert_eq!(finish(child).status.code(), Some(0));
    let exec = guest.last_exec();
    assert_eq!((exec.stdin, exec.terminal), (hospes_protocol::exec::Stdin::NULL, None));
    assert!(exec.merge_outputs, "both outputs are this terminal");
    assert!(is_cooked(&terminal));
}

#[test]
fn detach_keys_leave_the_command_running() {
    let (home, _guest) = pair();
    let words = ["exec", "-t", "--detach-keys", "ctrl-p,ctrl-q", "dev", "cat"];
    let (child, mut master, terminal) = on_terminal(&home, &words);
    eventually("raw mode", || !is_cooked(&terminal));
    master.write_all(b"x").unwrap();
    read_until(&mut master, "x");
    master.write_all(b"\x10\x11").unwrap();
    read_until(&mut master, "hospes attach dev 7");
    assert_eq!(finish(child).status.code(), Some(0));
    assert!(is_cooked(&terminal));
}
