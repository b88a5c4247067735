//! Sockets that somebody else holds: systemd's, or a starter's standard input.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use super::worker::{Worker, eventually, words};

/// A worker that gets this listening socket the way `script` passes it on.
fn start(listener: &UnixListener, script: &str) -> Child {
    Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_hospes-session")])
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())))
        .spawn()
        .unwrap()
}

const AS_SYSTEMD: &str = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --idle 1";
const AS_STDIN: &str = "exec \"$0\" --idle 1";

#[test]
fn a_worker_serves_the_socket_it_is_given_and_hands_it_back() {
    for script in [AS_SYSTEMD, AS_STDIN] {
        // systemd's socket is root's: a worker takes connections from nobody else there.
        if script == AS_SYSTEMD && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("worker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        for _ in 0..2 {
            let process = start(&listener, script);
            let mut worker = Worker::of(process, socket.clone());
            let mut run = worker.exec(&words(&["sh", "-c", "echo served; ls /proc/self/fd | wc -l; cat"]));
            assert_eq!(run.finish().code(), 0);
            assert_eq!(run.text().split_whitespace().collect::<Vec<_>>(), ["served", "4"], "no socket leaks");
            eventually("the idle worker ends", || worker.process.try_wait().unwrap().is_some());
            assert!(worker.process.wait().unwrap().success());
        }
    }
}

#[test]
fn who_comes_while_a_worker_ends_is_served_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("worker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // Nobody serves yet: the handoff waits in the backlog, as it does when the last worker has just gone.
    let waiting = std::thread::spawn({
        let socket = socket.clone();
        move || {
            let worker = Worker::of(Command::new("true").spawn().unwrap(), socket);
            let mut run = worker.exec(&words(&["echo", "late"]));
            (run.finish().code(), run.text())
        }
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    let _worker = Worker::of(start(&listener, AS_STDIN), socket);
    assert_eq!(waiting.join().unwrap(), (0, "late\n".to_owned()));
}

#[test]
fn without_a_socket_there_is_no_worker() {
    let output = Command::new(env!("CARGO_BIN_EXE_hospes-session")).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("No socket to listen at"), "{text}");
}
