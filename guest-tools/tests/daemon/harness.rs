//! A daemon in a process of its own, with its files in a directory of its own, and hosts that talk to it over its
//! socket.

use std::fs::{self, File};
use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::WireError;
use hospes_protocol::exec::Exec;
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::handshake::{Entropy, Host, Ready, Session};
use hospes_protocol::keys::SecretKey;
use hospes_protocol::ticket::{Issuer, Opened};
use hospes_protocol::version::Capabilities;

/// No answer takes so long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that is killed when the test ends.
pub(crate) struct Guest {
    directory: tempfile::TempDir,
    arguments: Vec<String>,
    /// A program that starts the daemon in its own place.
    wrapper: Vec<String>,
    daemon: Option<Child>,
}

impl Guest {
    /// Starts a daemon under this policy and waits for its word that it is ready.
    pub(crate) fn start(policy: &str) -> Self {
        Self::start_with(policy, &[])
    }

    /// As [`start`](Self::start), with more arguments.
    pub(crate) fn start_with(policy: &str, arguments: &[&str]) -> Self {
        Self::start_within(policy, arguments, &[])
    }

    /// As [`start_with`](Self::start_with), with a program before it that becomes the daemon.
    pub(crate) fn start_within(policy: &str, arguments: &[&str], wrapper: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etc", "state", "run"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let wrapper = wrapper.iter().map(ToString::to_string).collect();
        let mut guest = Self { directory, arguments, wrapper, daemon: None };
        guest.write_policy(policy);
        guest.restart();
        guest
    }

    /// Kills the daemon, as a crash does, and starts another.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let ready = self.path("ready");
        let _ = fs::remove_file(&ready);
        let notify = UnixDatagram::bind(&ready).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut words = self.wrapper.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_hospes-toolsd")]);
        let daemon = Command::new(words.next().unwrap())
            .args(words)
            .args(["--listen", &format!("unix:{}", self.path("socket").display())])
            .args(self.places())
            .args(["--worker-command", env!("CARGO_BIN_EXE_hospes-session")])
            .args(&self.arguments)
            .env("NOTIFY_SOCKET", &ready)
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let mut word = [0; 4096];
        loop {
            let n = notify.recv(&mut word).expect("the daemon says that it is ready");
            if String::from_utf8_lossy(&word[..n]).lines().any(|line| line == "READY=1") {
                return;
            }
        }
    }

    /// Kills the daemon, as a crash does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// The daemon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write_policy(&self, policy: &str) {
        // As editors do: another file, renamed over the old one.
        fs::write(self.path("etc/tools.toml~"), policy).unwrap();
        fs::rename(self.path("etc/tools.toml~"), self.path("etc/tools.toml")).unwrap();
    }

    /// All that the daemon has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// Runs `hospes-tools` on this guest's files.
    pub(crate) fn tools(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_hospes-tools"))
            .args(arguments)
            .args(self.places())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The worker that was started last.
    pub(crate) fn worker(&self) -> nix::unistd::Pid {
        let log = self.log();
        let mut started = log.lines().filter_map(|line| line.split_once("Started a worker, process "));
        nix::unistd::Pid::from_raw(started.next_back().unwrap().1.trim().parse().unwrap())
    }

    /// Ends the workers that outlived their daemons, by the process ids in the log.
    fn kill_workers(&self) {
        let log = self.log();
        let started = log
            .lines()
            .filter_map(|line| line.split_once("Started a worker, process ")?.1.trim().parse().ok());
        for pid in started {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.trim() == "hospes-session" {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
    }

    /// The daemon's status file, once `wanted` says so of it.
    pub(crate) fn status(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        until("the status file says what is wanted", || {
            let text = fs::read_to_string(self.path("run/status.json")).ok()?;
            serde_json::from_str(&text).ok().filter(&wanted)
        })
    }

    pub(crate) fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.path("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Connection { stream, buffer: FrameBuffer::new() }
    }

    /// A control session of the host with this key.
    pub(crate) fn control(&self, key: u8) -> Control {
        let mut connection = self.connect();
        let session = connection.prove(key, |out| frame::put_raw(FrameId::CONTROL, 0, b"", out));
        let ready = connection.ready();
        let issuer = Issuer::new(session.id, session.secret.clone());
        Control { connection, session, ready, issuer, asked: 0 }
    }

    fn places(&self) -> Vec<String> {
        let named = ["etc", "state", "run", "machine-id"];
        named.iter().flat_map(|name| [format!("--{name}"), self.path(name).display().to_string()]).collect()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        self.kill_workers();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}", self.log());
        }
    }
}

/// Tries until it is so. For what another process does in its own time and says nowhere.
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let rounds = PATIENCE.as_millis() / 10;
    for _ in 0..rounds {
        if let Some(value) = probe() {
            return value;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("Waited in vain until {what}");
}

pub(crate) fn host_key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32])
}

/// The user that these tests run as, and that the worker therefore serves.
pub(crate) fn myself() -> String {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name
}

/// A command as ourselves.
pub(crate) fn command(argv: &[&str]) -> Exec {
    let argv = argv.iter().map(|word| word.as_bytes().to_vec()).collect();
    Exec { user: myself(), argv, ..Exec::default() }
}

/// A host's end of one connection.
pub(crate) struct Connection {
    stream: UnixStream,
    buffer: FrameBuffer,
}

impl Connection {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn put<T: serde::Serialize>(&mut self, id: FrameId, message: &T) {
        let mut out = Vec::new();
        frame::put(id, message, &mut out);
        self.send(&out);
    }

    /// The next frame; `None` at the end.
    pub(crate) fn frame(&mut self) -> Option<(FrameId, u16, Vec<u8>)> {
        loop {
            if let Some(frame) = self.buffer.take().unwrap() {
                return Some((frame.id, frame.channel, frame.payload.to_vec()));
            }
            match self.stream.read(self.buffer.space()) {
                Ok(0) => return None,
                Ok(n) => self.buffer.filled(n),
                Err(error) if error.kind() == IoErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => panic!("no frame: {error}"),
            }
        }
    }

    /// Whether nothing has arrived that was not taken yet.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let silent = self.buffer.is_empty()
            && self.stream.read(self.buffer.space()).is_err_and(|e| e.kind() == IoErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).unwrap();
        silent
    }

    /// The next frame, which must be of this kind.
    pub(crate) fn expect<T: serde::de::DeserializeOwned>(&mut self, id: FrameId) -> T {
        let (found, _, payload) = self.frame().unwrap_or_else(|| panic!("closed in place of {id}"));
        if found == FrameId::FAILED && id != FrameId::FAILED {
            panic!("{:?} in place of {id}", codec::decode::<WireError>(&payload));
        }
        assert_eq!(found, id);
        codec::decode(&payload).unwrap()
    }

    pub(crate) fn refused(&mut self) -> WireError {
        self.expect(FrameId::FAILED)
    }

    pub(crate) fn ready(&mut self) -> Ready {
        self.expect(FrameId::READY)
    }

    /// The handshake up to our proof, with `more` in the same packet.
    pub(crate) fn prove(&mut self, key: u8, more: impl Fn(&mut Vec<u8>)) -> Session {
        let key = host_key(key);
        let fresh = || -> [u8; 32] {
            let mut bytes = [0; 32];
            File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
            bytes
        };
        let entropy = Entropy { share: fresh(), nonce: fresh(), session: [0; 16] };
        let mut out = Vec::new();
        let all = Capabilities(u64::MAX);
        let host = Host::start(&key, all, &entropy, &mut out);
        self.send(&out);
        let (id, _, hello) = self.frame().expect("the guest's hello");
        assert_eq!(id, FrameId::SERVER_HELLO);
        let mut out = Vec::new();
        let session = host.finish(&hello, &mut out).unwrap();
        more(&mut out);
        self.send(&out);
        session
    }
}

/// A host's control session.
pub(crate) struct Control {
    pub(crate) connection: Connection,
    pub(crate) session: Session,
    pub(crate) ready: Ready,
    issuer: Issuer,
    asked: u64,
}

impl Control {
    pub(crate) fn ask(&mut self, ask: Ask) -> Result<Answer, WireError> {
        self.asked += 1;
        self.connection.put(FrameId::REQUEST, &Request { number: self.asked, ask });
        let reply: Reply = self.connection.expect(FrameId::REPLY);
        assert_eq!(reply.number, self.asked);
        reply.answer
    }

    pub(crate) fn event(&mut self) -> Event {
        self.connection.expect(FrameId::EVENT)
    }

    /// A ticket's frame, and the answer that it must get.
    pub(crate) fn ticket(&mut self) -> (Vec<u8>, Opened) {
        let (ticket, opened) = self.issuer.issue();
        let mut out = Vec::new();
        frame::put(FrameId::TICKET, &ticket, &mut out);
        (out, opened)
    }

    /// Begins an operation as hosts do, ticket and request in one packet, and checks the guest's proof.
    pub(crate) fn open<T: serde::Serialize>(
        &mut self,
        guest: &Guest,
        id: FrameId,
        request: &T,
    ) -> Connection {
        let (mut out, expected) = self.ticket();
        frame::put(id, request, &mut out);
        let mut connection = guest.connect();
        connection.send(&out);
        let opened: Opened = connection.expect(FrameId::OPENED);
        assert!(expected.matches(&opened));
        connection
    }
}

/// What a command wrote, and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) code: u8,
}

/// Reads a command's connection to its end.
pub(crate) fn outcome(mut connection: Connection) -> Outcome {
    use hospes_protocol::exec::{HostStep, STDOUT};
    let mut exec = hospes_protocol::exec::Host::new();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let (id, channel, payload) =
            connection.frame().expect("the command's end comes before the connection's");
        match exec.receive(frame::Frame { id, channel, payload: &payload }).unwrap() {
            HostStep::Output(channel, bytes) => {
                if channel == STDOUT { &mut stdout } else { &mut stderr }.extend_from_slice(bytes);
                let mut out = Vec::new();
                exec.written(channel, payload.len(), &mut out);
                connection.send(&out);
            }
            HostStep::Exited(exited) => {
                connection.send(&[0x09, 0, 0, 0, 0, 0, 0, 0]);
                return Outcome { stdout, stderr, code: exited.status.shell_code() };
            }
            HostStep::Failed(error) => panic!("{error:?}"),
            _ => {}
        }
    }
}
