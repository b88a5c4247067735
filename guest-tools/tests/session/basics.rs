//! Programs, arguments, environment, exit status, and exact bytes.

use std::os::unix::fs::PermissionsExt;

use hospes_protocol::error::ErrorKind;
use hospes_protocol::exec::{Exec, ExitKind, Stdin};
use hospes_protocol::limits::INITIAL_CREDIT;

use super::worker::{Worker, eventually, is_alive, shell, words};

#[test]
fn a_command_gets_its_arguments_and_its_status_comes_back() {
    let worker = Worker::start();
    let mut run = worker.exec(&words(&["printf", "%s|", "a b", "", "$HOME", "\u{fffd}\n;"]));
    assert_eq!(run.finish().code(), 0);
    assert_eq!(run.text(), "a b||$HOME|\u{fffd}\n;|");
    assert_eq!(worker.exec(&shell("exit 7")).finish().code(), 7);
    let killed = worker.exec(&shell("kill -9 $$")).finish().exited();
    assert_eq!((killed.status.kind, killed.status.value), (ExitKind::SIGNAL, 9));
}

#[test]
fn outputs_are_apart_unless_they_are_one() {
    let worker = Worker::start();
    let script = "for i in 1 2 3 4 5 6 7 8; do echo out$i; echo err$i >&2; done";
    let mut apart = worker.exec(&shell(script));
    assert_eq!(apart.finish().code(), 0);
    let lines = |word: &str| (1..=8).map(|i| format!("{word}{i}\n")).collect::<String>();
    assert_eq!(
        (apart.text(), String::from_utf8_lossy(&apart.stderr).into_owned()),
        (lines("out"), lines("err"))
    );
    let mut merged = worker.exec(&Exec { merge_outputs: true, ..shell(script) });
    assert_eq!(merged.finish().code(), 0);
    let both: String = (1..=8).map(|i| format!("out{i}\nerr{i}\n")).collect();
    assert_eq!((merged.text(), merged.stderr.len()), (both, 0));
}

#[test]
fn megabytes_go_both_ways_unchanged() {
    let worker = Worker::start();
    let mut run = worker.exec(&Exec { stdin: Stdin::STREAM, ..words(&["cat"]) });
    let mut state = 1u32;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(20 * 1024 * 1024)
    .collect();
    run.write_stdin(&bytes);
    run.end_stdin();
    assert_eq!(run.finish().code(), 0);
    assert!(run.stdout == bytes, "{} bytes came back of {}", run.stdout.len(), bytes.len());
}

#[test]
fn what_cannot_run_is_refused_with_its_kind() {
    let worker = Worker::start();
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "echo $1 from a script").unwrap();
    let path = plain.to_str().unwrap();
    let refused = |request: &Exec| {
        let error = worker.exec(request).finish().failed();
        (error.kind, error.message)
    };
    assert_eq!(refused(&words(&["hospes-no-such-program"])).0, ErrorKind::NOT_FOUND);
    assert_eq!(refused(&words(&["/no/such/program"])).0, ErrorKind::NOT_FOUND);
    assert_eq!(refused(&words(&["/"])).0, ErrorKind::NOT_EXECUTABLE);
    assert_eq!(refused(&words(&[path])).0, ErrorKind::NOT_EXECUTABLE);
    assert_eq!(refused(&words(&[""])).0, ErrorKind::NOT_FOUND);
    let (kind, message) = refused(&Exec { cwd: Some(b"/no/such/place".to_vec()), ..words(&["true"]) });
    assert!(kind == ErrorKind::NOT_FOUND && message.contains("/no/such/place"), "{message}");
    let (kind, message) = refused(&Exec { cwd: Some(path.into()), ..words(&["true"]) });
    assert!(kind == ErrorKind::FILE_KIND && message.contains(path), "{message}");
    let long = Exec { env: vec![(b"LONG".to_vec(), vec![b'x'; 3_000_000])], ..words(&["true"]) };
    assert_eq!(refused(&long).0, ErrorKind::NOT_EXECUTABLE);
    // A script without a first line runs in the shell, as from every shell.
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut run = worker.exec(&words(&[path, "words"]));
    assert_eq!(run.finish().code(), 0);
    assert_eq!(run.text(), "words from a script\n");
}

#[test]
fn the_environment_is_the_users_and_the_requests() {
    let worker = Worker::start_with(|command| {
        command.env("NOTIFY_SOCKET", "/run/secret").env("INVOCATION_ID", "1").env("FROM_PAM", "yes");
    });
    let request = Exec { env: vec![(b"LANG".to_vec(), b"tlh".to_vec())], ..words(&["env"]) };
    let mut run = worker.exec(&request);
    assert_eq!(run.finish().code(), 0);
    let text = run.text();
    let has = |line: &str| text.lines().any(|known| known == line);
    assert!(has("LANG=tlh") && has("FROM_PAM=yes") && text.contains("\nHOME="), "{text}");
    assert!(
        !text.contains("NOTIFY_SOCKET") && !text.contains("INVOCATION_ID") && !text.contains("TERM="),
        "{text}"
    );
    let mut home =
        worker.exec(&shell("pwd -P; cd; pwd -P; cat; ulimit -n >/dev/null; ls /proc/self/fd | wc -l"));
    assert_eq!(home.finish().code(), 0);
    let text = home.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], lines[1], "it starts at home");
    assert_eq!(lines[2].trim(), "4", "standard descriptors, and what ls opened itself");
}

#[test]
fn a_login_shell_runs_the_arguments_as_they_are() {
    let worker = Worker::start();
    let mut run = worker.exec(&Exec { login: true, ..words(&["printf", "%s,", "a b", "$0"]) });
    assert_eq!(run.finish().code(), 0);
    assert!(run.text().ends_with("a b,$0,"), "{}", run.text());
    let mut shell = worker.exec(&Exec { login: true, stdin: Stdin::STREAM, ..words(&[]) });
    shell.write_stdin(b"echo shell is $0\n");
    shell.end_stdin();
    assert_eq!(shell.finish().code(), 0);
    assert!(shell.text().contains("shell is -"), "{}", shell.text());
}

#[test]
fn a_background_process_does_not_hold_the_end_up() {
    let worker = Worker::start();
    let mut run = worker.exec(&shell("(while :; do echo more; done) & echo $!; exit 3"));
    assert_eq!(run.finish().code(), 3);
    let text = run.text();
    let pid: i32 = text.lines().find_map(|line| line.parse().ok()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap_or(());
}

#[test]
fn usage_is_the_commands_own() {
    let worker = Worker::start();
    let used =
        worker.exec(&shell("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")).finish().exited().usage;
    assert!(used.user_us > 0 && used.elapsed_us >= used.user_us / 4 && used.max_rss_kib > 0, "{used:?}");
}

#[test]
fn commands_get_the_limits_that_their_session_was_given() {
    let soft = 300;
    let worker = Worker::start_with(|command| {
        let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap().1;
        let script = format!("ulimit -Sn {soft}; exec \"$0\" \"$@\"");
        let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let program = command.get_program().to_owned();
        *command = std::process::Command::new("sh");
        command.arg("-c").arg(script).arg(program).args(arguments);
        assert!(hard > 2000, "this test needs more descriptors than {hard}");
    });
    let mut runs: Vec<_> = (0..200)
        .map(|_| worker.exec(&Exec { stdin: Stdin::STREAM, ..shell("read line; ulimit -Sn") }))
        .collect();
    for run in &mut runs {
        run.until_started();
    }
    for run in &mut runs {
        run.write_stdin(b"go\n");
        assert_eq!(run.finish().code(), 0);
        assert_eq!(run.text(), format!("{soft}\n"));
    }
}

#[test]
fn what_the_pipe_still_holds_at_the_end_arrives() {
    let worker = Worker::start();
    // The host grants nothing on: the first window is sent, and what is beyond stays in the pipe.
    let size = INITIAL_CREDIT as usize + 4000;
    let mut run = worker.exec(&shell(&format!("head -c {size} /dev/zero; echo done >&2")));
    run.granting = false;
    run.until(|run| !run.stderr.is_empty());
    let pid = i32::try_from(run.started.as_ref().unwrap().pid).unwrap();
    eventually("it ends", || !is_alive(pid));
    run.granting = true;
    let have = run.stdout.len();
    assert!(have < size);
    run.with_out(|host, out| host.written(hospes_protocol::exec::STDOUT, have, out));
    assert_eq!(run.finish().code(), 0);
    assert_eq!(run.stdout.len(), size);
}
