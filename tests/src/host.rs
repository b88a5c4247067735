//! The host's side of a test: the `hospes` command with a home of its own, and an agent where one is wanted.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{Deadline, Guest, Lab, Process, spawn};

/// What a `hospes` command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ran {
    /// The exit status; 128 and the number where a signal ended `hospes` itself.
    pub status: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error, as text.
    pub stderr: String,
}

impl Ran {
    /// Standard output as text, of a command that has to have succeeded.
    pub fn text(self) -> Result<String> {
        if self.status != 0 {
            bail!("hospes ended with {}: {}", self.status, self.stderr);
        }
        String::from_utf8(self.stdout).context("hospes wrote what is no text")
    }
}

/// A user of the host: a home with nothing in it, and nothing of this machine's own settings.
#[derive(Debug)]
pub struct Host {
    program: PathBuf,
    // Ended before its home goes.
    agent: Option<Process>,
    home: TempDir,
    /// What a test has put into its environment.
    extra: Vec<(String, String)>,
}

impl Host {
    /// One without an agent.
    pub fn new() -> Result<Self> {
        // Not in the checkout: the agent's socket needs a short path.
        let home = tempfile::Builder::new().prefix("hospes-").tempdir()?;
        for directory in ["run", "config", "data", "state", "cache"] {
            fs::create_dir(home.path().join(directory))?;
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(home.path().join("run"), mode)?;
        Ok(Self { program: Lab::program("hospes")?, agent: None, home, extra: Vec::new() })
    }

    /// One with the identity that all of this process' tests share: a guest pins the first host that it meets, so the
    /// tests that share a guest are one host to it.
    pub fn sharing_identity() -> Result<Self> {
        static SHARED: OnceLock<Result<Host, String>> = OnceLock::new();
        let first = SHARED.get_or_init(|| {
            let host = Self::new().map_err(|error| format!("{error:#}"))?;
            host.run(&["key", "show"]).and_then(Ran::text).map_err(|error| format!("{error:#}"))?;
            Ok(host)
        });
        let first = first.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
        let host = Self::new()?;
        copy_tree(&first.home.path().join("data"), &host.home.path().join("data"))?;
        Ok(host)
    }

    /// One with that shared identity, which knows a guest by the name `vm`.
    pub fn of(guest: &Guest) -> Result<Self> {
        let host = Self::sharing_identity()?;
        host.add("vm", guest)?;
        Ok(host)
    }

    /// As [`of`](Self::of), with an agent, and the guest's tools have answered.
    pub fn with_agent_of(guest: &Guest) -> Result<Self> {
        let mut host = Self::of(guest)?;
        host.start_agent()?;
        host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
        Ok(host)
    }

    /// Starts the agent, and waits for its socket.
    pub fn start_agent(&mut self) -> Result<()> {
        let log = self.home.path().join("agent.log");
        // Through env(1), which takes the environment as words and then becomes the agent: the process id is its own.
        let mut words = vec!["-i".to_owned()];
        words.extend(self.environment().into_iter().map(|(name, value)| format!("{name}={value}")));
        words.extend([self.program.display().to_string(), "agent".to_owned()]);
        let mut agent = spawn("env", &words, self.home.path(), &log)?;
        let socket = self.home.path().join("run/hospes/agent.sock");
        Deadline::after(Duration::from_secs(20)).poll("the agent's socket", || {
            agent.expect_alive()?;
            Ok(socket.exists().then_some(()))
        })?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Kills the agent, if there is one.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// The agent's process id.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Process::pid)
    }

    /// Makes a guest known by `name`, its commands run as `dev`, and with it what serves its folders.
    pub fn add(&self, name: &str, guest: &Guest) -> Result<()> {
        let endpoint = format!("unix:{}", guest.vsock_path().display());
        let mut words = vec!["add", name, &endpoint, "--user", "dev"];
        let control = guest.control_path().display().to_string();
        if guest.folders_pid().is_some() {
            words.extend(["--hv", &control]);
        }
        self.run(&words)?.text().map(drop)
    }

    /// Makes what serves a guest's port at a socket known by `name`, its commands run as this user.
    pub fn add_socket(&self, name: &str, socket: &Path) -> Result<()> {
        let uid = nix::unistd::geteuid();
        let user = nix::unistd::User::from_uid(uid)?.map_or_else(|| uid.to_string(), |user| user.name);
        let endpoint = format!("socket:{}", socket.display());
        self.run(&["add", name, &endpoint, "--user", &user])?.text().map(drop)
    }

    /// Waits until the agent has a session with a guest.
    pub fn wait_connected(&self, name: &str) -> Result<()> {
        Deadline::after(Duration::from_secs(60)).poll(&format!("the agent's session with {name}"), || {
            let list: serde_json::Value = serde_json::from_str(&self.run(&["list", "--json"])?.text()?)?;
            let mut vms = list["vms"].as_array().into_iter().flatten();
            Ok(vms.any(|vm| vm["name"] == name && vm["state"] == "connected").then_some(()))
        })
    }

    /// A `hospes` command, ready to run.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).env_clear().envs(self.environment()).current_dir(self.home.path());
        command
    }

    /// Runs a `hospes` command with nothing on its standard input.
    pub fn run(&self, words: &[&str]) -> Result<Ran> {
        self.run_with(words, b"")
    }

    /// Runs a `hospes` command with these bytes on its standard input.
    pub fn run_with(&self, words: &[&str], stdin: &[u8]) -> Result<Ran> {
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("Could not start {}", self.program.display()))?;
        let mut pipe = child.stdin.take().context("the standard input is a pipe")?;
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that reads none of it closes the pipe: that is its right.
                let _ = pipe.write_all(stdin);
            });
            child.wait_with_output()
        })?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&output.status).unwrap_or(0);
        Ok(Ran {
            status: output.status.code().unwrap_or(128 + signal),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Puts a variable into the environment of what is started from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.extra.push((name.to_owned(), value.to_owned()));
    }

    /// A directory of the user's.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The `hospes` program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The environment of every command: this user's directories, and a path with `hospes` on it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let home = self.home.path().display();
        let programs = self.program.parent().unwrap_or(Path::new("/")).display();
        let at = |name: &str, directory: &str| (name.to_owned(), format!("{home}{directory}"));
        let mut all = vec![
            at("HOME", ""),
            at("XDG_RUNTIME_DIR", "/run"),
            at("XDG_CONFIG_HOME", "/config"),
            at("XDG_DATA_HOME", "/data"),
            at("XDG_STATE_HOME", "/state"),
            at("XDG_CACHE_HOME", "/cache"),
            ("PATH".to_owned(), format!("{programs}:/usr/local/bin:/usr/bin:/bin")),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ];
        all.extend(self.extra.iter().cloned());
        all
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
