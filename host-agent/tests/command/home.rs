//! A home of its own for each test, and the real `hospes` in it.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::guest::Guest;

/// How long anything that a test starts may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A home directory with nothing in it.
pub(crate) struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config", "data", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.path().join("run/hospes/agent.sock")
    }

    /// `hospes` with these words, its environment cleared.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hospes"));
        command
            .args(words)
            .env_clear()
            .env("HOME", self.path())
            .env("XDG_CONFIG_HOME", self.path().join("config"))
            .env("XDG_DATA_HOME", self.path().join("data"))
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("PATH", "/usr/bin:/bin")
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `hospes` to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Output {
        finish(self.command(words).spawn().unwrap())
    }

    /// Runs `hospes` with this stdin.
    pub(crate) fn run_with<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
        stdin: &[u8],
    ) -> Output {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let stdin = stdin.to_vec();
        std::thread::spawn(move || {
            let _ = pipe.write_all(&stdin);
        });
        finish(child)
    }

    /// Runs `hospes` and expects success; its stdout.
    pub(crate) fn good<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Adds a VM whose guest this process plays.
    pub(crate) fn add(&self, name: &str, guest: &Guest) {
        self.good(["add", name, &guest.endpoint()]);
    }
}

/// A home that knows a guest by the name `dev`.
pub(crate) fn pair() -> (Home, Guest) {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    (home, guest)
}

/// An agent in the foreground, killed at the end.
pub(crate) struct Agent {
    pub(crate) child: Child,
}

impl Agent {
    /// Starts one and waits until it takes questions.
    pub(crate) fn start(home: &Home) -> Self {
        let child = home.command(["agent"]).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        let agent = Self { child };
        let socket = home.agent_socket();
        eventually("the agent's socket", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child that has a deadline; past it the child is killed and the test fails.
pub(crate) fn finish(mut child: Child) -> Output {
    let (sender, receiver) = mpsc::channel::<()>();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let watchdog = std::thread::spawn(move || {
        if receiver.recv_timeout(DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    });
    let mut stderr = child.stderr.take();
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.read_to_end(&mut bytes);
        }
        bytes
    });
    let mut stdout = Vec::new();
    if let Some(pipe) = &mut child.stdout {
        pipe.read_to_end(&mut stdout).unwrap();
    }
    let status = child.wait().unwrap();
    drop(sender);
    watchdog.join().unwrap();
    let output = Output { status, stdout, stderr: errors.join().unwrap() };
    assert_ne!(
        std::os::unix::process::ExitStatusExt::signal(&output.status),
        Some(9),
        "hospes was killed at its deadline: {}",
        text(&output.stderr)
    );
    output
}

/// Tries until it holds; fails past the deadline.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(std::time::Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
