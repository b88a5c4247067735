//! A worker process of the test's own, and a host for each of its connections.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_tools::handoff::{self, Handoff};
use hospes_protocol::codec;
use hospes_protocol::error::WireError;
use hospes_protocol::exec::{Attach, Exec, ExecError, ExecId, Exited, Host, HostStep, STDOUT, Started};
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::keys::PublicKey;
use hospes_protocol::version::Capabilities;

/// Nothing here waits longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A worker process, killed with the value.
pub(crate) struct Worker {
    pub(crate) process: Child,
    pub(crate) socket: PathBuf,
    _directory: Option<tempfile::TempDir>,
}

impl Worker {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub(crate) fn start_with(prepare: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("worker.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hospes-session"));
        command.arg("--listen").arg(&socket).stdin(Stdio::null());
        prepare(&mut command);
        let process = command.spawn().unwrap();
        let worker = Self { process, socket, _directory: Some(directory) };
        eventually("the worker listens", || UnixStream::connect(&worker.socket).is_ok());
        worker
    }

    /// A worker that was started elsewhere, with the socket that it serves.
    pub(crate) fn of(process: Child, socket: PathBuf) -> Self {
        Self { process, socket, _directory: None }
    }

    /// Hands a connection with this request to the worker; our end of it.
    pub(crate) fn hand_over(&self, id: FrameId, request: Vec<u8>, rest: Vec<u8>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let handoff = Handoff {
            request_id: id.0,
            request,
            rest,
            preamble: Vec::new(),
            host: PublicKey([1; 32]),
            capabilities: Capabilities::EXEC,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handoff::send(&self.socket, theirs.as_fd(), &handoff)).unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        ours.set_write_timeout(Some(DEADLINE)).unwrap();
        ours
    }

    /// One request and one answer.
    pub(crate) fn ask<A: serde::de::DeserializeOwned>(
        &self,
        id: FrameId,
        request: &impl serde::Serialize,
        answer: FrameId,
    ) -> Result<A, WireError> {
        let mut stream = self.hand_over(id, encoded(request), Vec::new());
        let mut frames = FrameBuffer::new();
        loop {
            if let Some(frame) = frames.take().unwrap() {
                let got = match frame.id {
                    FrameId::FAILED => Err(frame.decode().unwrap()),
                    id if id == answer => Ok(frame.decode().unwrap()),
                    other => panic!("{other} came for {answer}"),
                };
                let mut bye = Vec::new();
                frame::put_raw(FrameId::BYE, 0, &[], &mut bye);
                stream.write_all(&bye).unwrap();
                return got;
            }
            let n = stream.read(frames.space()).unwrap();
            assert!(n > 0, "closed before the answer");
            frames.filled(n);
        }
    }

    pub(crate) fn exec(&self, request: &Exec) -> Run {
        Run::new(self.hand_over(FrameId::EXEC, encoded(request), Vec::new()))
    }

    pub(crate) fn attach(&self, id: ExecId) -> Run {
        Run::new(self.hand_over(
            FrameId::EXEC_ATTACH,
            encoded(&Attach { user: String::new(), id }),
            Vec::new(),
        ))
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// How many descriptors the worker has open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// How many it has open when nothing is under way: its own start is over, and so is the connection that found it.
    pub(crate) fn descriptors_at_rest(&self) -> usize {
        let mut alike = (0, 0);
        eventually("its descriptors stay the same", || {
            let now = self.descriptors();
            alike = if alike.0 == now { (now, alike.1 + 1) } else { (now, 0) };
            alike.1 == 40
        });
        alike.0
    }

    /// The worker's resident memory, KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// How many children it has, ended ones that nobody waited for too.
    pub(crate) fn children(&self) -> usize {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        std::fs::read_to_string(path).unwrap().split_whitespace().count()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn encoded(message: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode_into(message, &mut bytes);
    bytes
}

/// A request for these words.
pub(crate) fn words(argv: &[&str]) -> Exec {
    Exec { argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(), ..Exec::default() }
}

/// A request for a script of the guest's shell.
pub(crate) fn shell(script: &str) -> Exec {
    words(&["sh", "-c", script])
}

pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// How an exec ended, as its host sees it.
#[derive(Debug)]
pub(crate) enum End {
    Exited(Exited),
    Failed(WireError),
    Cut(ExecError),
}

impl End {
    pub(crate) fn exited(self) -> Exited {
        match self {
            Self::Exited(exited) => exited,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn code(self) -> u8 {
        self.exited().status.shell_code()
    }

    pub(crate) fn cut(self) -> ExecError {
        match self {
            Self::Cut(error) => error,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn failed(self) -> WireError {
        match self {
            Self::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    }
}

/// The host's side of one command.
pub(crate) struct Run {
    pub(crate) stream: UnixStream,
    pub(crate) host: Host,
    frames: FrameBuffer,
    pub(crate) started: Option<Started>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) stdin_unwanted: bool,
    pub(crate) end: Option<End>,
    /// Whether output is granted on: a host that does not read leaves it.
    pub(crate) granting: bool,
}

impl Run {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            host: Host::new(),
            frames: FrameBuffer::new(),
            started: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            stdin_unwanted: false,
            end: None,
            granting: true,
        }
    }

    /// Reads once and obeys.
    pub(crate) fn step(&mut self) {
        let n = match self.stream.read(self.frames.space()) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
            Err(error) => panic!("{error} with {} bytes of output", self.stdout.len()),
        };
        if n == 0 {
            if let Err(cut) = self.host.closed() {
                self.end = Some(End::Cut(cut));
            }
            assert!(self.end.is_some());
            return;
        }
        self.frames.filled(n);
        let mut out = Vec::new();
        while let Some(frame) = self.frames.take().unwrap() {
            match self.host.receive(frame).unwrap() {
                HostStep::Nothing | HostStep::StdinRoom => {}
                HostStep::Started(started) => self.started = Some(started),
                HostStep::Output(channel, bytes) => {
                    if channel == STDOUT { &mut self.stdout } else { &mut self.stderr }
                        .extend_from_slice(bytes);
                    if self.granting {
                        self.host.written(channel, bytes.len(), &mut out);
                    }
                }
                HostStep::StdinUnwanted => self.stdin_unwanted = true,
                HostStep::Exited(exited) => self.end = Some(End::Exited(exited)),
                HostStep::Failed(error) => self.end = Some(End::Failed(error)),
            }
        }
        if self.end.is_some() {
            frame::put_raw(FrameId::BYE, 0, &[], &mut out);
        }
        self.send(&out);
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A worker that was killed takes no more; reading says so.
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn until(&mut self, mut is_so: impl FnMut(&Self) -> bool) {
        while !is_so(self) {
            assert!(
                self.end.is_none(),
                "it ended: {:?}, with {:?}",
                self.end,
                String::from_utf8_lossy(&self.stdout)
            );
            self.step();
        }
    }

    pub(crate) fn until_started(&mut self) -> Started {
        self.until(|run| run.started.is_some());
        self.started.clone().unwrap()
    }

    /// To the end: how it ended, with all output in `stdout` and `stderr`.
    pub(crate) fn finish(&mut self) -> End {
        while self.end.is_none() {
            self.step();
        }
        self.end.take().unwrap()
    }

    /// The command's input, as far as there is credit; reading in between.
    pub(crate) fn write_stdin(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.end.is_none() && !self.stdin_unwanted {
            let n = self.host.stdin_room().min(bytes.len());
            if n == 0 {
                self.step();
                continue;
            }
            let header = self.host.stdin(n);
            self.send(&header.to_bytes());
            self.send(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    pub(crate) fn end_stdin(&mut self) {
        let mut out = Vec::new();
        self.host.stdin_end(&mut out);
        self.send(&out);
    }

    pub(crate) fn with_out(&mut self, act: impl FnOnce(&mut Host, &mut Vec<u8>)) {
        let mut out = Vec::new();
        act(&mut self.host, &mut out);
        self.send(&out);
    }

    pub(crate) fn say(&mut self, id: FrameId) {
        let mut out = Vec::new();
        frame::put_raw(id, 0, &[], &mut out);
        self.send(&out);
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Says that the host takes no more of stdout.
    pub(crate) fn close_stdout(&mut self) {
        self.with_out(|host, out| host.output_closed(STDOUT, out));
    }
}
