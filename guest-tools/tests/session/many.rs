//! Many commands at once, and what is left of them afterwards.

use std::thread;

use hospes_protocol::exec::{Exec, Stdin};

use super::worker::{Worker, eventually, shell, words};

#[test]
fn five_hundred_at_once_are_exact_and_leave_nothing_behind() {
    const COUNT: usize = 500;
    let worker = Worker::start();
    let descriptors = worker.descriptors_at_rest();
    assert_eq!(worker.exec(&words(&["true"])).finish().code(), 0);
    let resident = worker.resident();
    let mut runs: Vec<_> = (0..COUNT)
        .map(|n| {
            let script =
                format!("read line; echo \"{n} $line\"; seq {n}; echo err {n} >&2; exit {}", n % 200);
            worker.exec(&Exec { stdin: Stdin::STREAM, ..shell(&script) })
        })
        .collect();
    for run in &mut runs {
        run.until_started();
    }
    // All five hundred run now, and wait for this.
    for (n, run) in runs.iter_mut().enumerate() {
        run.write_stdin(format!("line {n}\n").as_bytes());
    }
    for (n, run) in runs.iter_mut().enumerate() {
        assert_eq!(usize::from(run.finish().code()), n % 200);
        let wanted = format!("{n} line {n}\n") + &(1..=n).map(|i| format!("{i}\n")).collect::<String>();
        assert_eq!(run.text(), wanted);
        assert_eq!(run.stderr, format!("err {n}\n").into_bytes());
    }
    drop(runs);
    eventually("the children are waited for", || worker.children() == 0);
    eventually("the descriptors are closed", || worker.descriptors() == descriptors);
    eventually("the memory is given back", || worker.resident() < resident + 4 * 1024);
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody_else() {
    let worker = Worker::start();
    let mut slow: Vec<_> = (0..4).map(|_| worker.exec(&words(&["yes"]))).collect();
    for run in &mut slow {
        run.granting = false;
        run.until_started();
    }
    for _ in 0..20 {
        assert_eq!(worker.exec(&shell("exit 6")).finish().code(), 6);
    }
}

#[test]
fn an_unread_stdout_does_not_hold_up_stderr() {
    let worker = Worker::start();
    let mut run = worker.exec(&shell("yes & sleep 0.3; echo told >&2; kill $!"));
    run.granting = false;
    run.until(|run| run.stderr == b"told\n");
}

#[test]
fn five_hundred_lost_at_once_are_all_gone() {
    let worker = Worker::start();
    let before = worker.descriptors_at_rest();
    let mut runs: Vec<_> = (0..500).map(|_| worker.exec(&shell("sleep 1000 & sleep 1000"))).collect();
    for run in &mut runs {
        run.until_started();
    }
    drop(runs);
    eventually("the children are gone", || worker.children() == 0);
    eventually("the descriptors are closed", || worker.descriptors() == before);
}

#[test]
fn commands_killed_at_random_end_with_the_right_result() {
    let worker = Worker::start();
    let mut seed = 42u64;
    let handles: Vec<_> = (0..200)
        .map(|n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let delay = seed >> 56;
            let mut run = worker.exec(&shell("seq 20000; exec sleep 1000"));
            let pid = i32::try_from(run.until_started().pid).unwrap();
            thread::spawn(move || {
                thread::sleep(std::time::Duration::from_millis(delay));
                let signal = if n.is_multiple_of(2) { 9 } else { 15 };
                // It is still its own: the worker waits for it only after this.
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::try_from(signal).unwrap(),
                )
                .unwrap();
                let end = run.finish().exited();
                assert_eq!(i32::from(end.status.value), signal);
                // Whatever it had written is here, and in order.
                let whole: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
                assert!(whole.starts_with(&run.text()));
            })
        })
        .collect();
    for handle in handles {
        handle.join().unwrap();
    }
    eventually("nothing is left behind", || worker.children() == 0);
}
