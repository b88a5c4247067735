//! Signals, time limits, and connections that are lost.

use hospes_protocol::exec::{Exec, ExecError, ExitKind, Stdin, Terminal};
use hospes_protocol::frame::FrameId;

use super::worker::{Run, Worker, eventually, is_alive, shell, words};

/// The process ids that the command's script has said.
fn said(run: &mut Run, count: usize) -> Vec<i32> {
    run.until(|run| run.text().lines().count() >= count);
    run.text().lines().map(|line| line.trim().parse().unwrap()).collect()
}

fn gone(pids: &[i32]) {
    eventually("the processes are gone", || pids.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let worker = Worker::start();
    let mut run = worker.exec(&shell("trap 'echo trapped; exit 5' USR1; sleep 1000 & echo $!; wait"));
    let pids = said(&mut run, 1);
    let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    eventually("the shell's child is a program of its own", || name(pids[0]) == "sleep\n");
    run.with_out(|host, out| host.signal(10, out));
    assert_eq!(run.finish().code(), 5);
    assert!(run.text().ends_with("trapped\n"));
    gone(&pids);
    let mut killed = worker.exec(&words(&["sleep", "1000"]));
    killed.until_started();
    for nonsense in [0, 200] {
        killed.with_out(|host, out| host.signal(nonsense, out));
    }
    killed.with_out(|host, out| host.signal(9, out));
    let end = killed.finish().exited();
    assert_eq!((end.status.kind, end.status.value), (ExitKind::SIGNAL, 9));
}

#[test]
fn a_lost_connection_hangs_the_command_and_its_children_up() {
    let worker = Worker::start();
    let before = worker.descriptors_at_rest();
    let mut run = worker.exec(&shell("sleep 1000 & echo $!; echo $$; sleep 1000"));
    let pids = said(&mut run, 2);
    drop(run);
    gone(&pids);
    eventually("nothing is left behind", || worker.children() == 0 && worker.descriptors() == before);
}

#[test]
fn a_goodbye_before_the_end_hangs_up_too() {
    let worker = Worker::start();
    let mut run = worker.exec(&shell("echo $$; exec sleep 1000"));
    let pids = said(&mut run, 1);
    run.say(FrameId::BYE);
    gone(&pids);
}

#[test]
fn who_does_not_hear_the_hangup_is_killed_wherever_it_hides() {
    let worker = Worker::start();
    // One ignores it in the group, one in a group of its own, one in a session of its own, and one is stopped.
    let script = "trap '' HUP TERM; sleep 1000 & echo $!; \
                  setsid sleep 1000 & sleep 0.3; pgrep -P $$ -f 'sleep 1000' | tail -1; \
                  (trap - HUP; kill -STOP $(sh -c 'echo $PPID')) & echo $!; \
                  echo $$; while :; do sleep 1; done";
    let mut run = worker.exec(&shell(script));
    let pids = said(&mut run, 4);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    drop(run);
    gone(&pids);
    eventually("nothing is left behind", || worker.children() == 0);
}

#[test]
fn a_terminals_loss_ends_its_jobs() {
    let worker = Worker::start();
    let request = Exec {
        stdin: Stdin::STREAM,
        terminal: Some(Terminal { term: "xterm".into(), size: Default::default() }),
        ..shell("set -m; sleep 1000 & echo $!; sh -c 'echo $$; exec sleep 1000'")
    };
    let mut run = worker.exec(&request);
    run.until(|run| run.text().matches("\r\n").count() >= 2);
    let pids: Vec<i32> = run.text().lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(pids.len(), 2);
    drop(run);
    gone(&pids);
}

#[test]
fn a_time_limit_ends_the_command_and_says_so() {
    let worker = Worker::start();
    let limited = |script| Exec { timeout_ms: Some(300), ..shell(script) };
    let end = worker.exec(&limited("sleep 1000")).finish().exited();
    assert!(end.timed_out && end.status.kind == ExitKind::SIGNAL && end.status.value == 15, "{end:?}");
    let mut deaf = worker.exec(&limited("trap '' TERM; echo $$; while :; do sleep 1; done"));
    let pids = said(&mut deaf, 1);
    let end = deaf.finish().exited();
    assert!(end.timed_out && end.status.value == 9, "{end:?}");
    gone(&pids);
    let quick = worker.exec(&Exec { timeout_ms: Some(60_000), ..words(&["true"]) }).finish().exited();
    assert!(!quick.timed_out);
}

#[test]
fn a_closed_stdout_ends_who_writes_to_it() {
    let worker = Worker::start();
    let mut run = worker.exec(&words(&["yes"]));
    run.until(|run| run.stdout.len() > 100_000);
    run.close_stdout();
    let end = run.finish().exited();
    assert_eq!((end.status.kind, end.status.value), (ExitKind::SIGNAL, 13), "SIGPIPE");
}

#[test]
fn a_closed_stdin_is_told() {
    let worker = Worker::start();
    let mut run = worker.exec(&Exec { stdin: Stdin::STREAM, ..shell("exec <&-; echo closed; sleep 1000") });
    run.until(|run| run.text().contains("closed"));
    run.write_stdin(b"to nobody\n");
    run.until(|run| run.stdin_unwanted);
    assert!(run.stdin_unwanted);
}

#[test]
fn a_worker_that_dies_cuts_the_command_off() {
    let worker = Worker::start();
    let mut run = worker.exec(&words(&["yes"]));
    run.until(|run| run.stdout.len() > 100_000);
    let pid = i32::try_from(run.started.as_ref().unwrap().pid).unwrap();
    drop(worker);
    assert!(matches!(run.finish().cut(), ExecError::Cut { .. }));
    gone(&[pid]);
}

#[test]
fn a_worker_that_is_told_to_end_tells_its_hosts() {
    let mut worker = Worker::start();
    let mut run = worker.exec(&shell("echo $$; exec sleep 1000"));
    let pids = said(&mut run, 1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker.pid()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let error = run.finish().failed();
    assert_eq!(error.kind, hospes_protocol::error::ErrorKind::CANCELLED);
    gone(&pids);
    eventually("the worker ends", || worker.process.try_wait().unwrap().is_some());
}
