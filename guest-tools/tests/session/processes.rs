//! ps and kill.

use hospes_protocol::error::ErrorKind;
use hospes_protocol::frame::FrameId;
use hospes_protocol::process::{Kill, Killed, Process, Processes, Ps, Target};

use super::worker::{Worker, eventually, is_alive, shell, words};

fn list(worker: &Worker, all: bool) -> Vec<Process> {
    worker.ask::<Processes>(FrameId::PS, &Ps { all, ..Ps::default() }, FrameId::PROCESSES).unwrap().list
}

fn kill(worker: &Worker, target: Target, signal: u8) -> Result<u32, ErrorKind> {
    let request = Kill { user: String::new(), target, signal };
    let killed = worker.ask::<Killed>(FrameId::KILL, &request, FrameId::KILLED);
    killed.map(|killed| killed.count).map_err(|error| error.kind)
}

#[test]
fn the_workers_commands_and_all_processes_are_listed() {
    let worker = Worker::start();
    let mut run = worker.exec(&words(&["sleep", "1000.5"]));
    let started = run.until_started();
    let argv = [b"sleep".to_vec(), b"1000.5".to_vec()];
    // The kernel lets a program be seen for a moment before its arguments are.
    eventually("it is listed", || list(&worker, false).first().is_some_and(|process| process.argv == argv));
    let own = list(&worker, false);
    assert_eq!(own.len(), 1);
    assert_eq!((own[0].pid, own[0].id), (started.pid, Some(started.id)));
    assert_eq!(own[0].ppid, worker.process.id());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(own[0].started <= now + 2 && own[0].started + 300 > now, "{} and now is {now}", own[0].started);
    let all = list(&worker, true);
    assert!(all.iter().any(|process| process.pid == worker.process.id() && process.rss_kib > 0));
    assert!(all.windows(2).all(|pair| pair[0].pid < pair[1].pid), "by process id");
}

#[test]
fn a_process_or_a_whole_command_is_signalled() {
    let worker = Worker::start();
    let mut run = worker.exec(&shell("sleep 1000 & echo $!; sleep 1000"));
    run.until(|run| run.text().ends_with('\n'));
    let child: i32 = run.text().trim().parse().unwrap();
    let id = run.started.clone().unwrap().id;
    assert_eq!(kill(&worker, Target::Pid(child.unsigned_abs()), 9), Ok(1));
    eventually("it is gone", || !is_alive(child));
    let count = kill(&worker, Target::Exec(id), 15).unwrap();
    assert!(count >= 2, "the shell and what it started: {count}");
    assert_eq!(run.finish().exited().status.value, 15);
    assert_eq!(kill(&worker, Target::Exec(id), 15), Err(ErrorKind::NOT_FOUND));
}

#[test]
fn what_is_not_there_is_not_signalled() {
    let worker = Worker::start();
    for pid in [0, u32::MAX, 0x7fff_fff0] {
        assert_eq!(kill(&worker, Target::Pid(pid), 15), Err(ErrorKind::NOT_FOUND), "{pid}");
    }
    assert_eq!(kill(&worker, Target::Pid(worker.process.id()), 65), Err(ErrorKind::PROTOCOL));
}
