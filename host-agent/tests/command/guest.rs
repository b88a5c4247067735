//! A guest played over a Unix socket with the protocol's own guest side, and told to misbehave.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::{
    self, Exec, ExecId, ExitKind, ExitStatus, Exited, GuestStep, STDERR, STDOUT, Started, Usage,
};
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::handshake::{self, Entropy, Ready, SessionId, machine_digest};
use hospes_protocol::info::{Info, Interface};
use hospes_protocol::keys::SecretKey;
use hospes_protocol::limits::{DATA_LEN, INITIAL_CREDIT};
use hospes_protocol::process::{Kill, Killed, Process, Processes};
use hospes_protocol::ticket::{Ticket, Window};
use hospes_protocol::version::Capabilities;

use crate::home::eventually;

/// What answers a request.
pub(crate) type Replies = fn(&Ask) -> Result<Answer, WireError>;
/// What serves an operation.
pub(crate) type Plays = fn(FrameId, &mut UnixStream) -> Option<()>;

/// What a test may change while the guest runs.
pub(crate) struct State {
    pub(crate) key: SecretKey,
    pub(crate) machine: [u8; 32],
    pub(crate) info: Info,
    /// Refuses every host with this error.
    pub(crate) refuse: Option<WireError>,
    /// Answers tickets with a wrong proof.
    pub(crate) impostor: bool,
    /// Answers requests in place of the usual answers.
    pub(crate) reply: Option<Replies>,
    /// Serves every operation but control sessions and requests in place of the usual plays. `None` ends its connection.
    pub(crate) play: Option<Plays>,
    /// What `EXEC` requests came.
    pub(crate) execs: Vec<Exec>,
    /// Signals that came, in order.
    pub(crate) signals: Vec<u8>,
    /// What `KILL` requests came.
    pub(crate) kills: Vec<Kill>,
    sessions: HashMap<SessionId, Window>,
    controls: Vec<UnixStream>,
}

/// What was counted.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) handshakes: AtomicUsize,
    pub(crate) client_auths: AtomicUsize,
    pub(crate) tickets: AtomicUsize,
    pub(crate) operations: AtomicUsize,
}

/// The guest. It ends with the test's process.
pub(crate) struct Guest {
    dir: tempfile::TempDir,
    connect: bool,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) counts: Arc<Counts>,
}

impl Guest {
    /// A guest behind a `unix:` endpoint.
    pub(crate) fn start() -> Self {
        Self::start_as(true)
    }

    /// A guest behind a `unix:` endpoint, or a `socket:` one.
    pub(crate) fn start_as(connect: bool) -> Self {
        let guest = Self::absent(connect);
        guest.boot();
        guest
    }

    /// A guest that is not there yet.
    pub(crate) fn absent(connect: bool) -> Self {
        let state = State {
            key: SecretKey::from_bytes(&[2; 32]),
            machine: machine_digest("guest"),
            info: info(),
            refuse: None,
            impostor: false,
            reply: None,
            play: None,
            execs: Vec::new(),
            signals: Vec::new(),
            kills: Vec::new(),
            sessions: HashMap::new(),
            controls: Vec::new(),
        };
        Self {
            dir: tempfile::tempdir().unwrap(),
            connect,
            state: Arc::new(Mutex::new(state)),
            counts: Arc::default(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("vsock")
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}:{}", if self.connect { "unix" } else { "socket" }, self.path().display())
    }

    /// Listens from now on.
    pub(crate) fn boot(&self) {
        let _ = std::fs::remove_file(self.path());
        let listener = UnixListener::bind(self.path()).unwrap();
        let (state, counts, connect) = (Arc::clone(&self.state), Arc::clone(&self.counts), self.connect);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (state, counts) = (Arc::clone(&state), Arc::clone(&counts));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    if connect {
                        let mut line = [0; 12];
                        if stream.read_exact(&mut line).is_err() {
                            return;
                        }
                        assert_eq!(&line, b"CONNECT 650\n");
                        stream.write_all(b"OK 1024\n").unwrap();
                    }
                    let _ = Peer { stream, input: FrameBuffer::new(), state, counts }.serve();
                });
            }
        });
    }

    /// The daemon restarts: its sessions are gone and their connections close.
    pub(crate) fn restart_daemon(&self) {
        self.forget_sessions();
        for control in self.state.lock().unwrap().controls.drain(..) {
            let _ = control.shutdown(std::net::Shutdown::Both);
        }
    }

    /// The sessions are gone and nobody was told.
    pub(crate) fn forget_sessions(&self) {
        self.state.lock().unwrap().sessions.clear();
    }

    pub(crate) fn controls(&self) -> usize {
        self.state.lock().unwrap().controls.len()
    }

    /// Sends an event to every control session, once there is one: the host may say that it is connected a moment before.
    pub(crate) fn event(&self, event: &Event) {
        eventually("a control session", || self.controls() > 0);
        let mut out = Vec::new();
        frame::put(FrameId::EVENT, event, &mut out);
        self.tell(&out);
    }

    /// Sends these bytes to every control session.
    pub(crate) fn tell(&self, bytes: &[u8]) {
        for control in &mut self.state.lock().unwrap().controls {
            let _ = control.write_all(bytes);
        }
    }

    pub(crate) fn count(&self, counter: impl Fn(&Counts) -> &AtomicUsize) -> usize {
        counter(&self.counts).load(SeqCst)
    }

    pub(crate) fn last_exec(&self) -> Exec {
        self.state.lock().unwrap().execs.last().expect("no exec came").clone()
    }
}

pub(crate) fn info() -> Info {
    Info {
        release: "0.1.0".to_owned(),
        hostname: "guesthost".to_owned(),
        os: "Debian GNU/Linux 13 (trixie)".to_owned(),
        os_id: "debian".to_owned(),
        kernel: "6.12.0-arm64".to_owned(),
        architecture: "aarch64".to_owned(),
        cpus: 4,
        memory_kib: 2 << 20,
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            up: true,
            default_route: true,
            addresses: vec!["192.0.2.7/24".to_owned(), "fe80::1/64".to_owned()],
            ..Interface::default()
        }],
        ..Info::default()
    }
}

struct Peer {
    stream: UnixStream,
    input: FrameBuffer,
    state: Arc<Mutex<State>>,
    counts: Arc<Counts>,
}

type Owned = (FrameId, u16, Vec<u8>);

impl Peer {
    fn next(&mut self) -> Option<Owned> {
        loop {
            if let Some(frame) = self.input.take().ok()? {
                return Some((frame.id, frame.channel, frame.payload.to_vec()));
            }
            let n = self.stream.read(self.input.space()).ok()?;
            if n == 0 {
                return None;
            }
            self.input.filled(n);
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }

    fn put<T: serde::Serialize>(&mut self, id: FrameId, message: &T) -> Option<()> {
        let mut out = Vec::new();
        frame::put(id, message, &mut out);
        self.send(&out)
    }

    fn serve(mut self) -> Option<()> {
        let (id, _, payload) = self.next()?;
        match id {
            FrameId::CLIENT_HELLO => self.shake_hands(&payload)?,
            FrameId::TICKET => self.open(&payload)?,
            _ => return None,
        }
        let (id, _, payload) = self.next()?;
        self.counts.operations.fetch_add(1, SeqCst);
        let play = self.state.lock().unwrap().play;
        if let Some(play) = play.filter(|_| !matches!(id, FrameId::CONTROL | FrameId::REQUEST)) {
            play(id, &mut self.stream)?;
            return self.drain();
        }
        match id {
            FrameId::EXEC => {
                let exec = hospes_protocol::codec::decode(&payload).ok()?;
                self.exec(&exec)
            }
            FrameId::EXEC_ATTACH => {
                let attach: exec::Attach = hospes_protocol::codec::decode(&payload).ok()?;
                let words = if attach.id == ExecId(7) { vec!["kept"] } else { vec!["missing"] };
                let argv = words.into_iter().map(|word| word.as_bytes().to_vec()).collect();
                self.exec(&Exec { argv, ..Exec::default() })
            }
            FrameId::PS => {
                let process = Process {
                    pid: 42,
                    ppid: 1,
                    uid: 1000,
                    user: "jo".to_owned(),
                    id: Some(ExecId(7)),
                    state: b'S',
                    started: 1_700_000_000,
                    cpu_ms: 1500,
                    rss_kib: 2048,
                    argv: vec![b"sleep".to_vec(), b"\x1b[2J".to_vec()],
                };
                self.put(FrameId::PROCESSES, &Processes { list: vec![process], omitted: 0 })
            }
            FrameId::KILL => {
                self.state.lock().unwrap().kills.push(hospes_protocol::codec::decode(&payload).ok()?);
                self.put(FrameId::KILLED, &Killed { count: 1 })
            }
            FrameId::CONTROL => self.control(),
            FrameId::REQUEST => {
                self.answer(&payload)?;
                self.drain()
            }
            _ => self.put(FrameId::UNKNOWN, &hospes_protocol::error::Unknown { id: id.0 }),
        }
    }

    fn shake_hands(&mut self, hello: &[u8]) -> Option<()> {
        let n = self.counts.handshakes.fetch_add(1, SeqCst);
        let byte = u8::try_from(n % 250).unwrap() + 1;
        let entropy = Entropy { share: [byte; 32], nonce: [byte; 32], session: [byte; 16] };
        let (key, machine, refuse) = {
            let state = self.state.lock().unwrap();
            (state.key.clone(), state.machine, state.refuse.clone())
        };
        let mut out = Vec::new();
        // It keeps no time: what commands cost is counted without.
        let caps = Capabilities(!Capabilities::TIME.0);
        let guest = handshake::Guest::answer(hello, &key, machine, caps, &entropy, &mut out).ok()?;
        self.send(&out)?;
        let (id, _, payload) = self.next()?;
        if id != FrameId::CLIENT_AUTH {
            return None;
        }
        self.counts.client_auths.fetch_add(1, SeqCst);
        let session = guest.finish(&payload).ok()?;
        if let Some(error) = refuse {
            self.put(FrameId::FAILED, &error);
            return None;
        }
        let window = Window::new(session.id, session.secret);
        self.state.lock().unwrap().sessions.insert(session.id, window);
        self.put(FrameId::READY, &Ready { release: "0.1.0".to_owned(), first_use: false })
    }

    fn open(&mut self, payload: &[u8]) -> Option<()> {
        let ticket: Ticket = hospes_protocol::codec::decode(payload).ok()?;
        self.counts.tickets.fetch_add(1, SeqCst);
        let taken = {
            let mut state = self.state.lock().unwrap();
            let impostor = state.impostor;
            match state.sessions.get_mut(&ticket.session) {
                Some(window) => window.take(&ticket).map(|mut opened| {
                    if impostor {
                        opened.mac[0] ^= 1;
                    }
                    opened
                }),
                None => Err(WireError::new(ErrorKind::STALE_TICKET, "No such session")),
            }
        };
        match taken {
            Ok(opened) => self.put(FrameId::OPENED, &opened),
            Err(error) => {
                self.put(FrameId::FAILED, &error);
                None
            }
        }
    }

    fn control(&mut self) -> Option<()> {
        self.state.lock().unwrap().controls.push(self.stream.try_clone().unwrap());
        loop {
            let (id, _, payload) = self.next()?;
            if id != FrameId::REQUEST {
                return None;
            }
            self.answer(&payload)?;
        }
    }

    fn answer(&mut self, payload: &[u8]) -> Option<()> {
        let Request { number, ask } = hospes_protocol::codec::decode(payload).ok()?;
        let reply = self.state.lock().unwrap().reply;
        let answer = match ask {
            ask if reply.is_some() => reply.map_or(Ok(Answer::Done), |reply| reply(&ask)),
            Ask::Ping => Ok(Answer::Pong),
            Ask::Info => Ok(Answer::Info(Box::new(self.state.lock().unwrap().info.clone()))),
            _ => Ok(Answer::Done),
        };
        self.put(FrameId::REPLY, &Reply { number, answer })
    }

    /// Plays the command that `argv` names.
    fn exec(&mut self, exec: &Exec) -> Option<()> {
        self.state.lock().unwrap().execs.push(exec.clone());
        let words: Vec<String> =
            exec.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let word = |at: usize| words.get(at).map_or("", String::as_str);
        let mut command = Played {
            guest: exec::Guest::new(),
            out: Vec::new(),
            stdin_ended: exec.stdin == exec::Stdin::NULL && exec.terminal.is_none(),
            gone: [false; 3],
            stdin: Vec::new(),
        };
        if word(0) == "missing" {
            let error =
                WireError::new(ErrorKind::NOT_FOUND, "No program named \u{1b}[31mmissing").hint("Install it");
            command.guest.failed(&error, &mut command.out);
            return self.send(&command.out);
        }
        if word(0) == "locked" {
            let error = WireError::new(ErrorKind::NOT_EXECUTABLE, "Not executable");
            command.guest.failed(&error, &mut command.out);
            return self.send(&command.out);
        }
        if word(0) == "unstarted" {
            return None;
        }
        command.guest.started(&Started { id: ExecId(7), pid: 42, lost: [0; 2] }, &mut command.out);
        let mut status = ExitStatus { kind: ExitKind::CODE, value: 0 };
        match word(0) {
            "exit" => status.value = word(1).parse().unwrap(),
            "die" => status = ExitStatus { kind: ExitKind::SIGNAL, value: word(1).parse().unwrap() },
            "say" => command.output(self, STDOUT, word(1).as_bytes())?,
            "kept" => command.output(self, STDOUT, b"kept output\n")?,
            "both" => {
                command.output(self, STDOUT, b"to stdout\n")?;
                command.output(self, STDERR, b"to stderr\n")?;
            }
            "flood" => {
                let chunk = vec![b'x'; 65536];
                let mut left: usize = word(1).parse().unwrap();
                while left > 0 && !command.gone[usize::from(STDOUT)] {
                    let n = left.min(chunk.len());
                    command.output(self, STDOUT, &chunk[..n])?;
                    left -= n;
                }
                command.output(self, STDERR, b"end of flood\n")?;
            }
            "cat" => {
                while !command.stdin_ended || !command.stdin.is_empty() {
                    let bytes = std::mem::take(&mut command.stdin);
                    command.output(self, STDOUT, &bytes)?;
                    if !command.stdin_ended && command.stdin.is_empty() {
                        command.step(self)?;
                    }
                }
            }
            "wait-signal" => {
                command.output(self, STDOUT, b"waiting\n")?;
                while self.state.lock().unwrap().signals.is_empty() {
                    command.step(self)?;
                }
                status = ExitStatus { kind: ExitKind::SIGNAL, value: self.state.lock().unwrap().signals[0] };
            }
            "deaf" => loop {
                command.output(self, STDOUT, b"")?;
                command.step(self)?;
            },
            "closes-stdin" => {
                command.guest.stdin_closed(&mut command.out);
                command.output(self, STDOUT, b"closed\n")?;
            }
            "timed-out" => {
                let exited = Exited {
                    status: ExitStatus { kind: ExitKind::SIGNAL, value: 15 },
                    timed_out: true,
                    usage: Usage::default(),
                };
                command.guest.exited(&exited, &mut command.out);
                return self.send(&command.out);
            }
            // From here on, lies.
            "cut" => {
                command.output(self, STDOUT, b"half of")?;
                return None;
            }
            "short" => {
                let lost = command.guest.output_data(STDOUT, 100);
                assert_eq!(lost.len, 100);
            }
            "early" => {
                let exited = Exited { status, timed_out: false, usage: Usage::default() };
                frame::put(FrameId::EXEC_EXITED, &exited, &mut command.out);
                return self.send(&command.out);
            }
            "overrun" => {
                for _ in 0..=INITIAL_CREDIT / DATA_LEN {
                    frame::put_raw(FrameId::DATA, STDOUT, &vec![b'x'; DATA_LEN as usize], &mut command.out);
                }
                self.send(&command.out)?;
                return self.drain();
            }
            "huge" => {
                command.out.extend_from_slice(&[0x10, 0, 1, 0, 0xff, 0xff, 0xff, 0x7f]);
                self.send(&command.out)?;
                return self.drain();
            }
            "garbage" => {
                frame::put_raw(
                    FrameId::EXEC_EXITED,
                    0,
                    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                    &mut command.out,
                );
                self.send(&command.out)?;
                return self.drain();
            }
            "true" => (),
            other => panic!("the played guest knows no {other}"),
        }
        if exec.detach {
            self.send(&command.out)?;
            return self.drain();
        }
        command.guest.exited(&Exited { status, timed_out: false, usage: Usage::default() }, &mut command.out);
        self.send(&command.out)?;
        self.drain()
    }

    /// Reads to the host's end, so that nothing we sent is lost to a reset.
    fn drain(&mut self) -> Option<()> {
        while self.next().is_some() {}
        Some(())
    }
}

struct Played {
    guest: exec::Guest,
    out: Vec<u8>,
    stdin_ended: bool,
    /// Which outputs the host wants no more of.
    gone: [bool; 3],
    /// What came on stdin and was not taken yet.
    stdin: Vec<u8>,
}

impl Played {
    /// Writes output as far as the host's credit goes, and waits for more.
    fn output(&mut self, peer: &mut Peer, channel: u16, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() && !self.gone[usize::from(channel)] {
            let n = self.guest.room(channel).min(bytes.len());
            if n == 0 {
                self.step(peer)?;
                continue;
            }
            let header = self.guest.output_data(channel, n);
            self.out.extend_from_slice(&header.to_bytes());
            self.out.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            peer.send(&std::mem::take(&mut self.out))?;
        }
        Some(())
    }

    /// Takes one frame from the host.
    fn step(&mut self, peer: &mut Peer) -> Option<()> {
        peer.send(&std::mem::take(&mut self.out))?;
        let (id, channel, payload) = peer.next()?;
        let frame = frame::Frame { id, channel, payload: &payload };
        match self.guest.receive(frame, &mut self.out).unwrap() {
            GuestStep::Stdin(bytes) => {
                self.guest.stdin_written(bytes.len(), &mut self.out);
                self.stdin.extend_from_slice(bytes);
            }
            GuestStep::StdinEnd => self.stdin_ended = true,
            GuestStep::OutputUnwanted(channel) => self.gone[usize::from(channel)] = true,
            GuestStep::Signal(number) => peer.state.lock().unwrap().signals.push(number),
            _ => (),
        }
        Some(())
    }
}
