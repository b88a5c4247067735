//! Desktops without a screen: real compositors, and the programs that people copy and paste with.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{Beside, Deadline, Lab, Process, spawn};

/// How long one program of a desktop's may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A compositor of the machine's, headless, with a runtime directory of its own.
#[derive(Debug)]
pub struct Compositor {
    process: Option<Process>,
    directory: TempDir,
}

impl Compositor {
    /// sway, which has wlr-data-control.
    pub fn sway() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir()?;
        fs::write(directory.path().join("config"), "xwayland disable\n")?;
        if nix::unistd::geteuid().is_root() {
            // sway does not run as root.
            let nobody = Some(65_534);
            std::os::unix::fs::chown(directory.path(), nobody, nobody)?;
        }
        let mut compositor = Self { process: None, directory };
        compositor.restart()?;
        Ok(compositor)
    }

    /// Kills the compositor, if it runs, and starts another in the same place.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let runtime = self.runtime().display().to_string();
        let mut words: Vec<String> =
            ["-i", "PATH=/usr/bin:/bin", "WLR_BACKENDS=headless", "WLR_RENDERER=pixman"]
                .map(str::to_owned)
                .to_vec();
        words.extend(["WLR_LIBINPUT_NO_DEVICES=1".into(), format!("XDG_RUNTIME_DIR={runtime}")]);
        words.push(format!("HOME={runtime}"));
        if nix::unistd::geteuid().is_root() {
            let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--pdeathsig=KILL"];
            words.extend(nobody.map(str::to_owned));
        }
        words.extend(["sway".into(), "-c".into(), format!("{runtime}/config")]);
        // Not in its own directory, which may be another user's.
        let log = std::env::temp_dir().join(format!("{}.log", self.name()));
        let mut process = spawn("env", &words, Path::new("/"), &log)?;
        let socket = self.socket();
        Deadline::after(PATIENCE).poll("sway's socket", || {
            process.expect_alive()?;
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the compositor, as a crash does.
    pub fn kill(&mut self) {
        self.process = None;
        for name in ["wayland-1", "wayland-1.lock"] {
            let _ = fs::remove_file(self.runtime().join(name));
        }
    }

    /// Its runtime directory.
    pub fn runtime(&self) -> &Path {
        self.directory.path()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime().join("wayland-1")
    }

    fn name(&self) -> String {
        self.runtime().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["60", program])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env("WAYLAND_DISPLAY", self.socket());
        command
    }

    /// Copies these bytes with wl-copy, which offers them until it is dropped or something else is copied.
    pub fn copy(&self, kind: &str, bytes: &[u8], options: &[&str]) -> Result<Copied> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), bytes)?;
        let child = self
            .command("wl-copy")
            .args(["-f", "-t", kind])
            .args(options)
            .stdin(file.reopen()?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("wl-copy is there: apt install wl-clipboard")?;
        Ok(Copied(child))
    }

    /// Pastes with wl-paste; `None` where it cannot be pasted as that, or there is nothing.
    pub fn paste(&self, kind: &str, options: &[&str]) -> Result<Option<Vec<u8>>> {
        let output = self.command("wl-paste").args(["-n", "-t", kind]).args(options).output()?;
        if output.status.code() == Some(124) {
            bail!("wl-paste waited for {} s", PATIENCE.as_secs());
        }
        Ok(output.status.success().then_some(output.stdout))
    }

    /// The types that wl-paste sees.
    pub fn types(&self, options: &[&str]) -> Result<Vec<String>> {
        let output = self.command("wl-paste").arg("-l").args(options).output()?;
        Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
    }

    /// Waits until these bytes can be pasted.
    pub fn pastes(&self, kind: &str, bytes: &[u8], options: &[&str]) -> Result<()> {
        let mut last = None;
        let polled = Deadline::after(PATIENCE).poll("what was copied to be pasted", || {
            last = self.paste(kind, options)?;
            Ok((last.as_deref() == Some(bytes)).then_some(()))
        });
        polled.with_context(|| match &last {
            Some(last) => {
                let head = String::from_utf8_lossy(&last[..last.len().min(80)]).into_owned();
                format!("{} bytes could be pasted last: {head}", last.len())
            }
            None => "nothing could be pasted".to_owned(),
        })
    }
}

impl Drop for Compositor {
    fn drop(&mut self) {
        let _ = fs::remove_file(std::env::temp_dir().join(format!("{}.log", self.name())));
    }
}

/// A program that offers what it copied. Dropping it ends it.
#[derive(Debug)]
pub struct Copied(std::process::Child);

impl Copied {
    /// Waits until another program's copy has taken its place.
    pub fn replaced(&mut self) -> Result<()> {
        Deadline::after(PATIENCE).poll("wl-copy to be replaced", || {
            let Some(status) = self.0.try_wait()? else { return Ok(None) };
            ensure!(status.success(), "wl-copy ended with {status}");
            Ok(Some(()))
        })
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // To timeout(1), which ends its child with it.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap_or(i32::MAX));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// The desktop's helper, beside a daemon.
pub fn helper(guest: &Beside, desktop: &Compositor) -> Result<Process> {
    let program = Lab::program("hospes-desktop")?;
    let mut words = vec!["-i".to_owned(), format!("XDG_RUNTIME_DIR={}", desktop.runtime().display())];
    words.extend([program.display().to_string(), "--run".into()]);
    words.push(guest.directory().join("run").display().to_string());
    spawn("env", &words, guest.directory(), &guest.directory().join("desktop.log"))
}

/// Bytes that are nowhere the same for long, the same each time.
#[must_use]
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let _ = bytes.write_all(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
