use super::*;
use crate::error::ErrorKind;
use crate::frame::FrameBuffer;

/// Both ends of an exec, joined by two byte queues.
#[derive(Default)]
struct Pair {
    host: Host,
    guest: Guest,
    to_host: Vec<u8>,
    to_guest: Vec<u8>,
    stdout: Vec<u8>,
    stdin: Vec<u8>,
}

fn feed(wire: &mut Vec<u8>) -> FrameBuffer {
    let mut buffer = FrameBuffer::new();
    buffer.push(&std::mem::take(wire));
    buffer
}

impl Pair {
    /// Delivers what the guest sent; returns the last step that was not output.
    fn host_reads(&mut self) -> Result<Option<HostStep<'static>>, ExecError> {
        let mut last = None;
        let mut buffer = feed(&mut self.to_host);
        while let Some(frame) = buffer.take().unwrap() {
            match self.host.receive(frame)? {
                HostStep::Output(channel, bytes) => {
                    self.stdout.extend_from_slice(bytes);
                    self.host.written(channel, bytes.len(), &mut self.to_guest);
                }
                HostStep::Nothing => (),
                HostStep::Started(started) => last = Some(HostStep::Started(started)),
                HostStep::StdinRoom => last = Some(HostStep::StdinRoom),
                HostStep::StdinUnwanted => last = Some(HostStep::StdinUnwanted),
                HostStep::Exited(exited) => last = Some(HostStep::Exited(exited)),
                HostStep::Failed(error) => last = Some(HostStep::Failed(error)),
            }
        }
        Ok(last)
    }

    fn guest_reads(&mut self) {
        let mut buffer = feed(&mut self.to_guest);
        while let Some(frame) = buffer.take().unwrap() {
            if let GuestStep::Stdin(bytes) = self.guest.receive(frame, &mut self.to_host).unwrap() {
                self.stdin.extend_from_slice(bytes);
                self.guest.stdin_written(bytes.len(), &mut self.to_host);
            }
        }
    }

    fn start(&mut self) {
        let started = Started { id: ExecId(1), pid: 42, lost: [0; 2] };
        self.guest.started(&started, &mut self.to_host);
        assert_eq!(self.host_reads().unwrap(), Some(HostStep::Started(started)));
    }

    fn output(&mut self, channel: u16, bytes: &[u8]) {
        let header = self.guest.output_data(channel, bytes.len());
        self.to_host.extend_from_slice(&header.to_bytes());
        self.to_host.extend_from_slice(bytes);
    }
}

fn exited(value: u8) -> Exited {
    Exited { status: ExitStatus { kind: ExitKind::CODE, value }, timed_out: false, usage: Usage::default() }
}

#[test]
fn output_and_status_arrive_whole_and_in_order() {
    let mut pair = Pair::default();
    pair.start();
    pair.output(STDOUT, b"hello ");
    pair.output(STDOUT, b"world");
    pair.guest.exited(&exited(3), &mut pair.to_host);
    assert_eq!(pair.host_reads().unwrap(), Some(HostStep::Exited(exited(3))));
    assert_eq!(pair.stdout, b"hello world");
    assert!(pair.host.closed().is_ok());
}

#[test]
fn a_cut_before_the_status_is_never_success() {
    let mut pair = Pair::default();
    assert!(matches!(pair.host.closed(), Err(ExecError::Cut { state: "starting" })));
    pair.start();
    pair.output(STDOUT, b"all of it");
    pair.host_reads().unwrap();
    assert!(matches!(pair.host.closed(), Err(ExecError::Cut { state: "running" })));
}

#[test]
fn a_guest_that_loses_output_is_found_out() {
    let mut pair = Pair::default();
    pair.start();
    pair.output(STDOUT, b"lost on the way");
    pair.to_host.clear();
    pair.guest.exited(&exited(0), &mut pair.to_host);
    assert!(matches!(
        pair.host_reads(),
        Err(ExecError::Stream(StreamError::Count { received: 0, claimed: 15, .. }))
    ));
}

#[test]
fn a_status_before_the_streams_ends_is_refused() {
    let mut pair = Pair::default();
    pair.start();
    frame::put(FrameId::EXEC_EXITED, &exited(0), &mut pair.to_host);
    assert!(matches!(pair.host_reads(), Err(ExecError::EarlyExit)));
}

#[test]
fn an_unread_stdout_does_not_hold_up_stdin() {
    let mut pair = Pair::default();
    pair.start();
    while pair.guest.room(STDOUT) > 0 {
        let room = pair.guest.room(STDOUT);
        let _never_read = pair.guest.output_data(STDOUT, room);
    }
    let header = pair.host.stdin(5);
    pair.to_guest.extend_from_slice(&header.to_bytes());
    pair.to_guest.extend_from_slice(b"stdin");
    pair.host.stdin_end(&mut pair.to_guest);
    pair.guest_reads();
    assert_eq!(pair.stdin, b"stdin");
}

#[test]
fn stdin_flows_past_the_first_window() {
    let mut pair = Pair::default();
    pair.start();
    let mut sent = 0;
    for round in 0..20 {
        while pair.host.stdin_room() > 0 && sent < 5_000_000 {
            let n = pair.host.stdin_room().min(100_000);
            let header = pair.host.stdin(n);
            pair.to_guest.extend_from_slice(&header.to_bytes());
            pair.to_guest.resize(pair.to_guest.len() + n, round);
            sent += n;
        }
        pair.guest_reads();
        pair.host_reads().unwrap();
    }
    pair.host.stdin_end(&mut pair.to_guest);
    pair.guest_reads();
    assert!(sent >= 5_000_000, "stdin starved at {sent}");
    assert_eq!(pair.stdin.len(), sent);
}

#[test]
fn a_closed_stdout_stops_the_guest_and_late_bytes_are_dropped() {
    let mut pair = Pair::default();
    pair.start();
    pair.output(STDOUT, b"y\n");
    pair.host.output_closed(STDOUT, &mut pair.to_guest);
    pair.output(STDOUT, b"y\n");
    pair.guest_reads();
    assert_eq!(pair.guest.room(STDOUT), 0);
    pair.guest.exited(&exited(141), &mut pair.to_host);
    assert_eq!(pair.host_reads().unwrap(), Some(HostStep::Exited(exited(141))));
    assert_eq!(pair.stdout, b"");
}

#[test]
fn nothing_follows_the_exit_status() {
    let mut pair = Pair::default();
    pair.start();
    pair.guest.exited(&exited(0), &mut pair.to_host);
    pair.guest.stdin_written(1_000_000, &mut pair.to_host);
    pair.guest.stdin_closed(&mut pair.to_host);
    assert_eq!(pair.host_reads().unwrap(), Some(HostStep::Exited(exited(0))));
}

#[test]
fn a_refusal_is_told_with_its_kind() {
    let mut pair = Pair::default();
    let error = WireError::new(ErrorKind::NOT_FOUND, "No program named nosuch").hint("Check the PATH");
    pair.guest.failed(&error, &mut pair.to_host);
    assert_eq!(pair.host_reads().unwrap(), Some(HostStep::Failed(error)));
    assert!(pair.host.closed().is_ok());
}

#[test]
fn requests_are_held_against_their_limits() {
    let good = Exec { argv: vec![b"true".to_vec()], ..Exec::default() };
    good.check().unwrap();
    let nul = Exec { argv: vec![b"a\0b".to_vec()], ..Exec::default() };
    assert!(matches!(nul.check(), Err(ExecError::Nul { what: "arguments" })));
    let name = Exec { env: vec![(b"A=B".to_vec(), vec![])], ..Exec::default() };
    assert!(matches!(name.check(), Err(ExecError::EnvName)));
    let many = Exec { argv: vec![vec![]; ARGV + 1], ..Exec::default() };
    assert!(matches!(many.check(), Err(ExecError::TooMany { .. })));
}
