//! `hospes exec` against a guest played by this process: exact bytes, exact exit codes, and no lie believed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guest::Guest;
use crate::home::{Home, eventually, finish, pair, text};

#[test]
fn output_error_output_and_exit_code_become_ours() {
    let (home, _guest) = pair();
    let output = home.run(["exec", "dev", "both"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("to stdout\n".into(), "to stderr\n".into()));
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(home.run(["exec", "dev", "--", "exit", "3"]).status.code(), Some(3));
    assert_eq!(home.run(["exec", "dev", "exit", "255"]).status.code(), Some(255));
    assert_eq!(home.run(["exec", "dev", "die", "9"]).status.code(), Some(137));
}

#[test]
fn a_plain_socket_endpoint_works_too() {
    let (home, guest) = (Home::new(), Guest::start_as(false));
    home.add("dev", &guest);
    assert_eq!(home.good(["exec", "dev", "say", "hello"]), "hello");
}

#[test]
fn our_failures_have_codes_of_their_own() {
    let (home, _guest) = pair();
    let code = |words: &[&str]| home.run(words).status.code().unwrap();
    assert_eq!(code(&["exec", "dev", "missing"]), 127);
    assert_eq!(code(&["exec", "dev", "locked"]), 126);
    assert_eq!(code(&["exec", "dev", "timed-out"]), 124);
    assert_eq!(code(&["exec", "nosuch", "--", "true"]), 125);
    assert_eq!(code(&["exec", "dev"]), 125);
    assert_eq!(code(&["exec", "--no-such-option", "dev", "true"]), 125);
    assert_eq!(code(&["exec", "--help"]), 0);
}

#[test]
fn the_request_is_what_was_asked_for() {
    let (home, guest) = pair();
    let mut command = home.command([
        "exec",
        "dev",
        "-u",
        "jo",
        "-w",
        "/tmp",
        "-e",
        "A=b=c",
        "-e",
        "HERE",
        "-e",
        "NOWHERE",
        "--timeout",
        "2m",
        "--login",
        "true",
        "-x",
        "--",
        "y",
    ]);
    finish(command.env("HERE", "from here").spawn().unwrap());
    let exec = guest.last_exec();
    assert_eq!(exec.argv, ["true", "-x", "--", "y"].map(|word| word.as_bytes().to_vec()));
    assert_eq!((exec.user.as_str(), exec.cwd.as_deref()), ("jo", Some(&b"/tmp"[..])));
    assert_eq!(exec.env, [(b"A".to_vec(), b"b=c".to_vec()), (b"HERE".to_vec(), b"from here".to_vec())]);
    assert_eq!((exec.timeout_ms, exec.login, exec.terminal), (Some(120_000), true, None));
}

#[test]
fn words_are_never_changed() {
    use std::os::unix::ffi::OsStringExt;
    let (home, guest) = pair();
    let odd = std::ffi::OsString::from_vec(b"\xff $HOME;'\n".to_vec());
    finish(home.command(["exec".into(), "dev".into(), "true".into(), odd]).spawn().unwrap());
    assert_eq!(guest.last_exec().argv[1], b"\xff $HOME;'\n");
}

#[test]
fn hospes_vm_is_the_default_and_a_named_vm_goes_before_it() {
    let (home, guest) = pair();
    let run = |words: &[&str]| finish(home.command(words).env("HOSPES_VM", "dev").spawn().unwrap());
    assert_eq!(text(&run(&["exec", "--", "say", "a"]).stdout), "a");
    assert_eq!(text(&run(&["exec", "say", "b"]).stdout), "b");
    assert_eq!(text(&run(&["exec", "dev", "say", "c"]).stdout), "c");
    assert_eq!(text(&run(&["exec", "-u", "jo", "say", "-d", "--"]).stdout), "-d");
    assert_eq!(guest.last_exec().user, "jo");
    let missing = run(&["exec", "other", "--", "say", "x"]);
    assert_eq!(missing.status.code(), Some(125));
    assert!(text(&missing.stderr).contains("No VM named other"));
    let none = home.run(["exec", "--", "true"]);
    assert!(text(&none.stderr).contains("HOSPES_VM"), "{}", text(&none.stderr));
    assert_eq!(home.good(["exec", "--vm", "dev", "say", "-e"]), "-e");
}

#[test]
fn stdin_is_forwarded_whole_and_not_with_n() {
    let (home, guest) = pair();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let output = home.run_with(["exec", "dev", "cat"], &bytes);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == bytes, "{} of {} bytes came back", output.stdout.len(), bytes.len());
    let output = home.run_with(["exec", "-n", "dev", "cat"], b"unwanted");
    assert_eq!(
        (text(&output.stdout), guest.last_exec().stdin),
        (String::new(), hospes_protocol::exec::Stdin::NULL)
    );
}

#[test]
fn a_file_is_stdin_and_with_n_a_loop_keeps_its_own() {
    let (home, _guest) = pair();
    let path = home.path().join("lines");
    std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
    let mut command = home.command(["exec", "dev", "cat"]);
    let output = finish(command.stdin(File::open(&path).unwrap()).spawn().unwrap());
    assert_eq!(text(&output.stdout), "one\ntwo\nthree\n");

    let script = r#"while read -r line; do "$0" exec -n dev say "$line,"; done < lines"#;
    let mut shell = home.command([""; 0]);
    let hospes = shell.get_program().to_owned();
    shell = {
        let mut sh = std::process::Command::new("/bin/sh");
        sh.args(["-c", script]).arg(hospes).current_dir(home.path()).env_clear();
        sh.envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?))));
        sh
    };
    let output = shell.output().unwrap();
    assert_eq!(text(&output.stdout), "one,two,three,", "{}", text(&output.stderr));
}

#[test]
fn a_closed_stdin_in_the_guest_stops_ours() {
    let (home, _guest) = pair();
    let mut child = home.command(["exec", "dev", "closes-stdin"]).stdin(Stdio::piped()).spawn().unwrap();
    // Our end stays open: hospes must end all the same.
    let _pipe = child.stdin.take();
    assert_eq!(text(&finish(child).stdout), "closed\n");
}

#[test]
fn a_slow_reader_gets_every_byte_and_holds_up_nothing_else() {
    let (home, _guest) = pair();
    let mut child = home.command(["exec", "dev", "flood", "20000000"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 10];
    stdout.read_exact(&mut first).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    let rest = std::thread::spawn(move || BufReader::new(stdout).bytes().filter(Result::is_ok).count());
    let output = finish(child);
    assert_eq!(rest.join().unwrap(), 20_000_000 - 10);
    assert_eq!(text(&output.stderr), "end of flood\n");
}

#[test]
fn error_output_arrives_while_nobody_reads_stdout() {
    let (home, _guest) = pair();
    // More than a pipe holds and less than the stream's credit: stdout waits, stderr must not.
    let mut child = home.command(["exec", "dev", "flood", "300000"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "end of flood\n");
    assert_eq!(finish(child).stdout.len(), 300_000);
}

#[test]
fn a_reader_that_goes_away_ends_the_flood_quietly() {
    let (home, _guest) = pair();
    let mut child = home.command(["exec", "dev", "flood", "1000000000"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let output = finish(child);
    assert_eq!(text(&output.stderr), "end of flood\n");
}

#[test]
fn a_full_disk_is_told() {
    let (home, _guest) = pair();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let child = home.command(["exec", "dev", "say", "x"]).stdout(full).spawn().unwrap();
    let output = finish(child);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
}

#[test]
fn outputs_that_are_one_file_here_are_one_there() {
    let (home, guest) = pair();
    let path = home.path().join("log");
    let file = File::create(&path).unwrap();
    let child = home.command(["exec", "dev", "both"]).stdout(file.try_clone().unwrap()).stderr(file).spawn();
    finish(child.unwrap());
    assert!(guest.last_exec().merge_outputs);
    home.run(["exec", "dev", "both"]);
    assert!(!guest.last_exec().merge_outputs);
}

fn signalled(signals: &[Signal]) -> (Option<i32>, Vec<u8>) {
    let (home, guest) = pair();
    let what = if signals.len() > 1 { "deaf" } else { "wait-signal" };
    let child = home.command(["exec", "dev", what]).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    eventually("the exec", || !guest.state.lock().unwrap().execs.is_empty());
    // The command runs before hospes has read that it does.
    std::thread::sleep(std::time::Duration::from_millis(200));
    for (at, signal) in signals.iter().enumerate() {
        kill(pid, *signal).unwrap();
        if at + 1 < signals.len() {
            eventually("the signal", || guest.state.lock().unwrap().signals.len() > at);
        }
    }
    let code = finish(child).status.code();
    let signals = guest.state.lock().unwrap().signals.clone();
    (code, signals)
}

#[test]
fn signals_reach_the_command_and_its_end_is_ours() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        assert_eq!(signalled(&[signal]), (Some(128 + signal as i32), vec![signal as u8]));
    }
}

#[test]
fn a_command_that_does_not_listen_is_left_at_the_third_time() {
    let (code, signals) = signalled(&[Signal::SIGINT, Signal::SIGINT, Signal::SIGTERM]);
    assert_eq!(code, Some(128 + 15));
    assert_eq!(signals[..2], [2, 2]);
}

#[test]
fn detached_commands_have_a_number_to_come_back_to() {
    let (home, guest) = pair();
    assert_eq!(home.good(["exec", "--detach", "dev", "true"]), "7\n");
    assert!(guest.last_exec().detach);
    assert_eq!(home.good(["attach", "dev", "7"]), "kept output\n");
    assert_eq!(home.run(["attach", "dev", "8"]).status.code(), Some(127));
}

#[test]
fn a_shell_without_a_terminal_reads_its_commands_from_stdin() {
    let (home, guest) = pair();
    assert_eq!(text(&home.run_with(["shell", "dev", "cat"], b"script").stdout), "script");
    let exec = guest.last_exec();
    assert!(exec.login && exec.terminal.is_none());
}

/// Whatever the guest lies, it is an error of ours that says so, soon and without a panic.
#[test]
fn a_lying_guest_is_never_believed() {
    let (home, _guest) = pair();
    for (lie, told) in [
        ("cut", "connection was lost"),
        ("unstarted", "connection was lost"),
        ("short", "ended after 0 bytes"),
        ("early", "before the end of its output"),
        ("huge", "claims 2147483647 bytes"),
        ("garbage", "broke the protocol"),
    ] {
        let output = home.run(["exec", "dev", lie]);
        assert_eq!(output.status.code(), Some(125), "{lie}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(told), "{lie}: {}", text(&output.stderr));
    }
}

#[test]
fn a_guest_that_sends_beyond_its_credit_is_cut_off() {
    let (home, _guest) = pair();
    let mut child = home.command(["exec", "dev", "overrun"]).spawn().unwrap();
    let _unread = child.stdout.take();
    let output = finish(child);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("with credit for"), "{}", text(&output.stderr));
}

#[test]
fn a_guests_words_cannot_drive_our_terminal() {
    let (home, _guest) = pair();
    let output = home.run(["exec", "dev", "missing"]);
    assert!(!output.stderr.contains(&0x1b), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("Install it"));
}
