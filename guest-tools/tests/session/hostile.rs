//! Hosts that break the rules, and handoffs that are none.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use hospes_protocol::error::ErrorKind;
use hospes_protocol::exec::{Exec, Stdin};
use hospes_protocol::frame::{self, FrameId, Header};
use hospes_protocol::limits::DATA_LEN;

use super::worker::{Run, Worker, encoded, eventually, is_alive, words};

#[test]
fn an_unknown_request_is_refused_and_the_worker_goes_on() {
    let worker = Worker::start();
    let mut run = Run::new(worker.hand_over(FrameId(0x7e7e), vec![1, 2, 3], Vec::new()));
    assert_eq!(run.finish().failed().kind, ErrorKind::UNSUPPORTED);
    for id in [FrameId::EXEC, FrameId::EXEC_ATTACH, FrameId::PS, FrameId::KILL] {
        let mut run = Run::new(worker.hand_over(id, vec![0xff; 40], Vec::new()));
        assert_eq!(run.finish().failed().kind, ErrorKind::PROTOCOL, "{id}");
    }
    assert_eq!(worker.exec(&words(&["true"])).finish().code(), 0);
}

#[test]
fn who_breaks_the_protocol_loses_its_command() {
    let worker = Worker::start();
    let mut overrun = vec![];
    for _ in 0..40 {
        // What the pipe takes is granted again: the first few are in order.
        frame::put_raw(FrameId::DATA, 0, &vec![b'x'; DATA_LEN as usize], &mut overrun);
    }
    let mut count = vec![];
    frame::put_on(FrameId::END, 0, &77u64, &mut count);
    let mut channel = vec![];
    frame::put_raw(FrameId::DATA, 9, b"x", &mut channel);
    let mut wrong = vec![];
    frame::put_raw(FrameId::PS, 0, b"", &mut wrong);
    let mut credit = vec![];
    for _ in 0..2 {
        frame::put_on(FrameId::CREDIT, 1, &u64::MAX, &mut credit);
    }
    let long = Header { id: FrameId::BYE, channel: 0, len: u32::MAX }.to_bytes().to_vec();
    let bad = [overrun, count, channel, wrong, credit, long];
    for (case, bytes) in bad.iter().enumerate() {
        let mut run = worker.exec(&Exec { stdin: Stdin::STREAM, ..words(&["sleep", "1000"]) });
        let pid = i32::try_from(run.until_started().pid).unwrap();
        run.send(bytes);
        let error = run.finish();
        assert!(
            matches!(&error, super::worker::End::Failed(error) if error.kind == ErrorKind::PROTOCOL)
                || matches!(&error, super::worker::End::Cut(_)),
            "case {case}: {error:?}"
        );
        eventually("its command is gone", || !is_alive(pid));
    }
    assert_eq!(worker.exec(&words(&["true"])).finish().code(), 0);
}

#[test]
fn noise_does_not_stop_the_worker() {
    let mut worker = Worker::start();
    let mut state = 7u64;
    let mut noise = |len: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(len)
        .collect()
    };
    for round in 0..50 {
        // To the handoff's socket, and to a connection that was handed over.
        let _ = UnixStream::connect(&worker.socket).unwrap().write_all(&noise(round * 7));
        let request = encoded(&Exec { stdin: Stdin::STREAM, ..words(&["cat"]) });
        let mut stream = worker.hand_over(FrameId::EXEC, request, noise(round));
        let _ = stream.write_all(&noise(500));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(worker.process.try_wait().unwrap().is_none(), "it lives");
    assert_eq!(worker.exec(&words(&["true"])).finish().code(), 0);
    eventually("nothing is left behind", || worker.children() == 0);
}

#[test]
fn what_came_with_the_request_is_not_lost() {
    let worker = Worker::start();
    let request = encoded(&Exec { stdin: Stdin::STREAM, ..words(&["cat"]) });
    let mut rest = vec![];
    for n in 0..200u8 {
        frame::put_raw(FrameId::DATA, 0, &vec![n; 1000], &mut rest);
    }
    frame::put_on(FrameId::END, 0, &200_000u64, &mut rest);
    let mut run = Run::new(worker.hand_over(FrameId::EXEC, request, rest));
    assert_eq!(run.finish().code(), 0);
    assert!(run.stdout.chunks(1000).zip(0..200u8).all(|(chunk, n)| chunk.iter().all(|byte| *byte == n)));
    assert_eq!(run.stdout.len(), 200_000);
}

#[test]
fn a_newer_hosts_frame_is_answered() {
    let worker = Worker::start();
    let mut run = worker.exec(&Exec { stdin: Stdin::STREAM, ..words(&["cat"]) });
    let mut out = vec![];
    frame::put_raw(FrameId(0x6a6a), 0, b"from the future", &mut out);
    run.send(&out);
    run.write_stdin(b"still here");
    run.end_stdin();
    assert_eq!(run.finish().code(), 0);
    assert_eq!(run.text(), "still here");
}
