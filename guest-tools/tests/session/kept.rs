//! Commands that run without a connection, and coming back to them.

use hospes_protocol::error::ErrorKind;
use hospes_protocol::exec::{Exec, ExecId, Stdin};
use hospes_protocol::frame::FrameId;
use hospes_protocol::process::{Processes, Ps};

use super::worker::{Run, Worker, eventually, is_alive, shell, words};

fn detached(request: Exec) -> Exec {
    Exec { detach: true, ..request }
}

/// Starts a detached command and leaves it.
fn leave(worker: &Worker, request: Exec) -> (ExecId, i32) {
    let mut run = worker.exec(&detached(request));
    let started = run.until_started();
    run.say(FrameId::BYE);
    (started.id, i32::try_from(started.pid).unwrap())
}

#[test]
fn a_detached_command_runs_on_and_its_output_and_status_are_fetched() {
    let worker = Worker::start();
    let (id, pid) = leave(&worker, shell("echo out; echo err >&2; sleep 0.2; echo later; exit 9"));
    eventually("it ends", || !is_alive(pid));
    let mut back = worker.attach(id);
    assert_eq!(back.finish().code(), 9);
    assert_eq!((back.text().as_str(), back.stderr.as_slice()), ("out\nlater\n", &b"err\n"[..]));
    assert_eq!(back.started.unwrap().lost, [0, 0]);
    // Fetched once, it is gone.
    eventually("it is forgotten", || worker.attach(id).finish().failed().kind == ErrorKind::NOT_FOUND);
}

#[test]
fn what_was_not_fetched_whole_is_kept() {
    let worker = Worker::start();
    let (id, _) = leave(&worker, words(&["seq", "100000"]));
    let mut cut = worker.attach(id);
    cut.until(|run| !run.stdout.is_empty());
    drop(cut);
    let mut back = worker.attach(id);
    assert_eq!(back.finish().code(), 0);
    let wanted: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(back.text() == wanted, "{} of {}", back.stdout.len(), wanted.len());
}

#[test]
fn the_oldest_output_makes_room() {
    let worker = Worker::start();
    let request = Exec {
        keep_output: Some(1000),
        ..shell("head -c 5000 /dev/zero | tr '\\0' a; head -c 500 /dev/zero | tr '\\0' b")
    };
    let (id, pid) = leave(&worker, request);
    eventually("it ends", || !is_alive(pid));
    let mut back = worker.attach(id);
    assert_eq!(back.finish().code(), 0);
    assert_eq!(back.started.as_ref().unwrap().lost, [4500, 0]);
    assert_eq!(back.text(), "a".repeat(500) + &"b".repeat(500));
}

#[test]
fn who_comes_back_follows_live_and_can_type() {
    let worker = Worker::start();
    let request = Exec {
        stdin: Stdin::STREAM,
        ..shell("echo first; while read line; do echo got $line; done; echo over")
    };
    let (id, _) = leave(&worker, request);
    let mut back = worker.attach(id);
    back.until(|run| run.text().contains("first"));
    back.write_stdin(b"one\n");
    back.until(|run| run.text().contains("got one"));
    // Left again by losing the connection: it is kept all the same.
    drop(back);
    let mut again = worker.attach(id);
    again.write_stdin(b"two\n");
    again.end_stdin();
    assert_eq!(again.finish().code(), 0);
    assert_eq!(again.text(), "first\ngot one\ngot two\nover\n");
}

#[test]
fn input_sent_with_a_detached_command_reaches_it() {
    let worker = Worker::start();
    let mut run = worker.exec(&detached(Exec { stdin: Stdin::STREAM, ..words(&["wc", "-c"]) }));
    let id = run.until_started().id;
    run.write_stdin(&vec![b'x'; 300_000]);
    run.end_stdin();
    run.say(FrameId::BYE);
    let mut back = worker.attach(id);
    assert_eq!(back.finish().code(), 0);
    assert_eq!(back.text().trim(), "300000");
}

#[test]
fn a_running_command_can_be_let_go() {
    let worker = Worker::start();
    let mut run = worker.exec(&shell("echo before; sleep 0.5; echo after; exit 4"));
    run.until(|run| run.text().contains("before"));
    let id = run.started.clone().unwrap().id;
    run.say(FrameId::EXEC_DETACH);
    run.say(FrameId::BYE);
    drop(run);
    let mut back = worker.attach(id);
    assert_eq!(back.finish().code(), 4);
    assert_eq!((back.text().as_str(), back.started.unwrap().lost[0]), ("after\n", 7));
}

#[test]
fn the_last_one_to_come_back_has_it() {
    let worker = Worker::start();
    let (id, _) = leave(&worker, Exec { stdin: Stdin::STREAM, ..words(&["cat"]) });
    let mut first = worker.attach(id);
    first.until_started();
    let mut second = worker.attach(id);
    second.until_started();
    assert_eq!(first.finish().failed().kind, ErrorKind::CANCELLED);
    second.write_stdin(b"mine\n");
    second.end_stdin();
    assert_eq!(second.finish().code(), 0);
    assert_eq!(second.text(), "mine\n");
}

#[test]
fn a_command_with_its_host_cannot_be_taken_over() {
    let worker = Worker::start();
    let mut run: Run = worker.exec(&words(&["sleep", "1000"]));
    let id = run.until_started().id;
    assert_eq!(worker.attach(id).finish().failed().kind, ErrorKind::BUSY);
    assert_eq!(worker.attach(ExecId(77)).finish().failed().kind, ErrorKind::NOT_FOUND);
}

#[test]
fn only_so_many_ended_commands_are_kept() {
    let worker = Worker::start();
    let ids: Vec<ExecId> = (0..80).map(|_| leave(&worker, words(&["true"])).0).collect();
    let listed = || worker.ask::<Processes>(FrameId::PS, &Ps::default(), FrameId::PROCESSES).unwrap().list;
    eventually("they have ended and the oldest are gone", || {
        let list = listed();
        list.len() == 64 && list.iter().all(|process| process.state == b'X')
    });
    assert_eq!(worker.attach(ids[0]).finish().failed().kind, ErrorKind::NOT_FOUND);
    assert_eq!(worker.attach(ids[79]).finish().code(), 0);
}

#[test]
fn a_worker_with_a_command_is_not_idle() {
    let worker = Worker::start_with(|command| {
        command.args(["--idle", "1"]);
    });
    let mut run = worker.exec(&shell("sleep 2.5; echo done"));
    assert_eq!(run.finish().code(), 0);
    assert_eq!(run.text(), "done\n");
}

#[test]
fn an_idle_worker_ends_and_one_that_keeps_something_does_not() {
    let mut worker = Worker::start_with(|command| {
        command.args(["--idle", "1"]);
    });
    let (id, pid) = leave(&worker, shell("sleep 2.5; echo done"));
    eventually("it ends", || !is_alive(pid));
    assert!(worker.process.try_wait().unwrap().is_none());
    let mut back = worker.attach(id);
    assert_eq!(back.finish().code(), 0);
    assert_eq!(back.text(), "done\n");
    eventually("the worker ends", || worker.process.try_wait().unwrap().is_some());
    assert!(worker.process.wait().unwrap().success());
}
