//! Exec: each end against a hostile peer, and both honest ends against each other.

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::{
    ExecId, ExitKind, ExitStatus, Exited, Guest, GuestStep, Host, HostStep, STDERR, STDIN, STDOUT, Started,
    Usage, WindowSize,
};
use hospes_protocol::frame::{Frame, FrameId};
use hospes_protocol::limits::{DATA_LEN, INITIAL_CREDIT, MAX_CREDIT};

use super::input::{Input, ZEROS, own_frames};

fn started() -> Started {
    Started { id: ExecId(1), pid: 2, lost: [0, 0] }
}

fn exited() -> Exited {
    let status = ExitStatus { kind: ExitKind::CODE, value: 0 };
    Exited { status, timed_out: false, usage: Usage::default() }
}

fn payload<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    hospes_protocol::codec::encode_into(message, &mut bytes);
    bytes
}

/// What a receiving end has been given, and may hold.
#[derive(Default, Clone, Copy)]
struct Inbound {
    received: u64,
    /// Delivered to the rim and not yet written by it.
    waiting: usize,
}

impl Inbound {
    fn take(&mut self, len: usize) {
        self.received += len as u64;
        self.waiting += len;
        assert!(self.waiting <= MAX_CREDIT as usize, "{} bytes are buffered", self.waiting);
    }
}

/// What a sending end has been allowed.
struct Outbound {
    sent: u64,
    granted: u64,
}

impl Outbound {
    const fn new() -> Self {
        Self { sent: 0, granted: INITIAL_CREDIT as u64 }
    }

    fn send(&mut self, len: usize) {
        self.sent += len as u64;
        assert!(self.sent <= self.granted, "{} bytes sent with credit for {}", self.sent, self.granted);
    }
}

/// The host's end and a guest that says anything.
pub fn exec_host(data: &[u8]) {
    let mut input = Input(data);
    let (mut host, mut inbound, mut stdin) = (Host::new(), [Inbound::default(); 2], Outbound::new());
    let (mut over, mut out) = (false, Vec::new());
    while let Some(what) = input.next() {
        let channel = 1 + u16::from(what >> 7);
        let at = usize::from(channel - 1);
        let bytes;
        let (id, payload): (_, &[u8]) = match what % 16 {
            0 => {
                bytes = payload(&started());
                (FrameId::EXEC_STARTED, &bytes)
            }
            1 | 2 => (FrameId::DATA, &ZEROS[..input.len(DATA_LEN as usize)]),
            3 => {
                bytes = payload(&inbound[at].received);
                (FrameId::END, &bytes)
            }
            4 => {
                bytes = payload(&exited());
                (FrameId::EXEC_EXITED, &bytes)
            }
            5 => {
                bytes = payload(&WireError::new(ErrorKind::OTHER, "x"));
                (FrameId::FAILED, &bytes)
            }
            6 => {
                let grant = input.u32();
                bytes = payload(&grant);
                stdin.granted += u64::from(grant);
                if host.receive(Frame { id: FrameId::CREDIT, channel: STDIN, payload: &bytes }).is_err() {
                    return;
                }
                continue;
            }
            7 => {
                let frame = input.frame();
                if frame.id == FrameId::CREDIT || (frame.id == FrameId::DATA && frame.channel == channel) {
                    continue;
                }
                match host.receive(frame) {
                    Ok(HostStep::Output(channel, bytes)) => {
                        inbound[usize::from(channel - 1)].take(bytes.len());
                    }
                    Ok(HostStep::Exited(_) | HostStep::Failed(_)) => over = true,
                    Ok(_) => (),
                    Err(error) => return drop(error.to_string()),
                }
                continue;
            }
            8 => {
                let len = input.len(host.stdin_room());
                if host.stdin_room() > 0 {
                    assert_eq!(host.stdin(len).len as usize, len);
                    stdin.send(len);
                }
                continue;
            }
            9 => {
                host.stdin_end(&mut out);
                assert!(!host.stdin_open() && host.stdin_room() == 0);
                continue;
            }
            10 => {
                let len = input.len(inbound[at].waiting);
                inbound[at].waiting -= len;
                host.written(channel, len, &mut out);
                continue;
            }
            11 => {
                host.output_closed(channel, &mut out);
                continue;
            }
            12 => {
                host.signal(input.byte(), &mut out);
                host.resize(WindowSize { cols: input.u16(), ..WindowSize::default() }, &mut out);
                continue;
            }
            13 => (FrameId::UNWANTED, &[]),
            _ => {
                assert_eq!(host.closed().is_ok(), over, "an end is taken for a cut, or a cut for an end");
                continue;
            }
        };
        let channel = if id == FrameId::UNWANTED { STDIN } else { channel };
        match host.receive(Frame { id, channel, payload }) {
            Ok(HostStep::Output(channel, bytes)) => {
                assert!(!over, "output after the status");
                inbound[usize::from(channel - 1)].take(bytes.len());
            }
            Ok(HostStep::Nothing) if id == FrameId::DATA => inbound[at].received += payload.len() as u64,
            Ok(HostStep::Exited(_) | HostStep::Failed(_)) => over = true,
            Ok(_) => (),
            Err(error) => return drop(error.to_string()),
        }
    }
    own_frames(&out, |_| ());
}

/// The guest's end and a host that says anything.
pub fn exec_guest(data: &[u8]) {
    let mut input = Input(data);
    let (mut guest, mut stdin, mut outputs) =
        (Guest::new(), Inbound::default(), [Outbound::new(), Outbound::new()]);
    let (mut over, mut unwanted, mut out) = (false, false, Vec::new());
    while let Some(what) = input.next() {
        let channel = STDOUT + u16::from(what >> 7);
        let output = &mut outputs[usize::from(channel - STDOUT)];
        let bytes;
        let frame = match what % 8 {
            0 | 1 => {
                Frame { id: FrameId::DATA, channel: STDIN, payload: &ZEROS[..input.len(DATA_LEN as usize)] }
            }
            2 => {
                bytes = payload(&stdin.received);
                Frame { id: FrameId::END, channel: STDIN, payload: &bytes }
            }
            3 => {
                let grant = input.u32();
                output.granted += u64::from(grant);
                bytes = payload(&grant);
                Frame { id: FrameId::CREDIT, channel, payload: &bytes }
            }
            4 => match input.frame() {
                Frame { id: FrameId::CREDIT, .. } => continue,
                other => other,
            },
            5 => {
                let len = input.len(guest.room(channel));
                if !over && guest.room(channel) > 0 {
                    assert_eq!(guest.output_data(channel, len).len as usize, len);
                    output.send(len);
                }
                continue;
            }
            6 => {
                let len = input.len(stdin.waiting);
                stdin.waiting -= len;
                guest.stdin_written(len, &mut out);
                continue;
            }
            _ => {
                match input.byte() % 4 {
                    0 if !over => guest.started(&started(), &mut out),
                    1 if !over => {
                        guest.exited(&exited(), &mut out);
                        over = true;
                        assert!(guest.room(STDOUT) == 0 && guest.room(STDERR) == 0, "output after its end");
                    }
                    2 => {
                        guest.stdin_closed(&mut out);
                        unwanted = true;
                    }
                    _ => assert_eq!(guest.is_done(), over),
                }
                continue;
            }
        };
        let len = frame.payload.len();
        let stdin_data = frame.id == FrameId::DATA && frame.channel == STDIN;
        match guest.receive(frame, &mut out) {
            Ok(GuestStep::Stdin(bytes)) => {
                assert!(stdin_data && !unwanted, "stdin out of nothing");
                stdin.take(bytes.len());
            }
            Ok(GuestStep::Nothing) if stdin_data => stdin.received += len as u64,
            Ok(_) => (),
            Err(error) => return drop(error.to_string()),
        }
    }
    own_frames(&out, |_| ());
}

/// Two honest ends, moved in any order: nothing is ever refused, and every byte arrives before the status.
pub fn exec_pair(data: &[u8]) {
    let mut input = Input(data);
    let mut pair = Pair::default();
    while let Some(what) = input.next() {
        pair.step(what, &mut input);
    }
    pair.finish();
}

#[derive(Default)]
struct Pair {
    host: Host,
    guest: Guest,
    to_host: Vec<u8>,
    to_guest: Vec<u8>,
    running: bool,
    over: bool,
    /// Bytes written into the machines, by stream, and those that came out.
    sent: [u64; 3],
    arrived: [u64; 3],
    waiting: [usize; 3],
    closed: [bool; 3],
    host_knows: bool,
}

impl Pair {
    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        let channel = STDOUT + u16::from(what >> 7);
        let at = usize::from(channel);
        match what % 10 {
            0 if !self.running && !self.over => {
                self.guest.started(&started(), &mut self.to_host);
                self.running = true;
            }
            1 | 2 => {
                let len = input.len(self.host.stdin_room());
                if self.host.stdin_room() > 0 {
                    let header = self.host.stdin(len);
                    self.to_guest.extend_from_slice(&header.to_bytes());
                    self.to_guest.extend_from_slice(&ZEROS[..len]);
                    self.sent[0] += len as u64;
                }
            }
            3 | 4 if self.running => {
                let len = input.len(self.guest.room(channel));
                if self.guest.room(channel) > 0 {
                    let header = self.guest.output_data(channel, len);
                    self.to_host.extend_from_slice(&header.to_bytes());
                    self.to_host.extend_from_slice(&ZEROS[..len]);
                    self.sent[at] += len as u64;
                }
            }
            5 => self.write(input),
            6 => self.deliver(),
            7 => match input.byte() % 4 {
                0 => self.host.stdin_end(&mut self.to_guest),
                1 => {
                    self.host.output_closed(channel, &mut self.to_guest);
                    self.closed[at] = true;
                }
                2 => {
                    self.guest.stdin_closed(&mut self.to_host);
                    self.closed[0] = true;
                }
                _ => self.host.signal(input.byte(), &mut self.to_guest),
            },
            8 if self.running && what > 240 => {
                self.guest.exited(&exited(), &mut self.to_host);
                (self.running, self.over) = (false, true);
            }
            _ => (),
        }
    }

    /// The rims write what waits.
    fn write(&mut self, input: &mut Input<'_>) {
        for at in 0..3u16 {
            let waiting = &mut self.waiting[usize::from(at)];
            let len = input.len(*waiting);
            *waiting -= len;
            match at {
                STDIN => self.guest.stdin_written(len, &mut self.to_host),
                _ => self.host.written(at, len, &mut self.to_guest),
            }
        }
    }

    fn deliver(&mut self) {
        let to_host = std::mem::take(&mut self.to_host);
        own_frames(&to_host, |frame| match self.host.receive(frame).expect("an honest guest") {
            HostStep::Output(channel, bytes) => self.arrived(channel, bytes.len()),
            HostStep::Exited(_) => self.host_knows = true,
            _ => (),
        });
        let to_guest = std::mem::take(&mut self.to_guest);
        let mut answers = Vec::new();
        own_frames(&to_guest, |frame| {
            let step = self.guest.receive(frame, &mut answers).expect("an honest host");
            if let GuestStep::Stdin(bytes) = step {
                self.arrived(STDIN, bytes.len());
            }
        });
        assert!(answers.is_empty(), "an honest host said something unknown");
    }

    fn arrived(&mut self, channel: u16, len: usize) {
        assert!(!self.host_knows || channel == STDIN, "output after the status");
        let at = usize::from(channel);
        self.arrived[at] += len as u64;
        self.waiting[at] += len;
        assert!(self.waiting[at] <= MAX_CREDIT as usize, "{} bytes are buffered", self.waiting[at]);
    }

    /// Whatever happened, what was sent arrives, and the command can end.
    fn finish(mut self) {
        if !self.running && !self.over {
            self.guest.started(&started(), &mut self.to_host);
            self.running = true;
        }
        if self.running {
            self.guest.exited(&exited(), &mut self.to_host);
        }
        self.deliver();
        self.deliver();
        assert!(self.host_knows && self.host.closed().is_ok(), "the status did not arrive");
        for at in 0..3 {
            let lost = self.sent[at] - self.arrived[at];
            assert!(lost == 0 || self.closed[at], "{lost} bytes of stream {at} were lost");
        }
    }
}
