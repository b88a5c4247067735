//! The programs that people copy and paste with, and the desktop's helper.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use super::{Compositor, PATIENCE};
use crate::{Beside, Deadline, Lab, Process, spawn};

/// As what [`Compositor::copies`] copies.
const COPIES: &str = "text/plain;charset=utf-8";

impl Compositor {
    /// Copies these bytes with wl-copy or xclip, which offers them until it is dropped or something else is copied.
    pub fn copy(&self, kind: &str, bytes: &[u8], options: &[&str]) -> Result<Copied> {
        let file = tempfile::NamedTempFile::new_in(self.runtime())?;
        fs::write(file.path(), bytes)?;
        let mut command = if self.has_data_control() {
            let mut command = self.command("wl-copy");
            command.args(["-f", "-t", kind]).args(options);
            command
        } else {
            let mut command = self.command("xclip");
            command.args(["-quiet", "-in", "-t", kind, "-selection", selection(options)]);
            command
        };
        let child = command.stdin(file.reopen()?).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Copied(child))
    }

    /// So many copies as quickly as a program can make them, each of which ends as the next takes its place.
    pub fn copies(&self, count: u32) -> Result<()> {
        let copy = if self.has_data_control() {
            format!("echo copy $n | wl-copy -t {COPIES}")
        } else {
            format!("echo copy $n | xclip -in -selection clipboard -t {COPIES}")
        };
        let script = format!("n=0; while [ $n -lt {count} ]; do n=$((n + 1)); {copy}; done >/dev/null 2>&1");
        ensure!(self.command("sh").args(["-c", &script]).status()?.success(), "the copies were not made");
        Ok(())
    }

    /// Pastes with wl-paste or xclip; `None` where it cannot be pasted as that, or there is nothing.
    pub fn paste(&self, kind: &str, options: &[&str]) -> Result<Option<Vec<u8>>> {
        let output = if self.has_data_control() {
            self.command("wl-paste").args(["-n", "-t", kind]).args(options).output()?
        } else {
            self.command("xclip").args(["-out", "-t", kind, "-selection", selection(options)]).output()?
        };
        if output.status.code() == Some(124) {
            bail!("The paste took longer than {} s", PATIENCE.as_secs());
        }
        Ok(output.status.success().then_some(output.stdout))
    }

    /// The types that such a program sees.
    pub fn types(&self, options: &[&str]) -> Result<Vec<String>> {
        let output = if self.has_data_control() {
            self.command("wl-paste").arg("-l").args(options).output()?
        } else {
            self.command("xclip")
                .args(["-out", "-t", "TARGETS", "-selection", selection(options)])
                .output()?
        };
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

/// The selection that wl-clipboard's options name, in xclip's words.
fn selection(options: &[&str]) -> &'static str {
    if options.contains(&"-p") { "primary" } else { "clipboard" }
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

/// The desktop's helper, beside a daemon, as the user that the test runs as.
pub fn helper(guest: &Beside, desktop: &Compositor) -> Result<Process> {
    start_helper(guest, desktop, &[])
}

/// The desktop's helper with its user's own rights, which only root can give it.
pub fn helper_of(guest: &Beside, desktop: &Compositor) -> Result<Process> {
    let user = desktop.user();
    // The daemon's socket is everybody's; where it is in a test is not yet.
    for directory in [guest.directory().to_owned(), guest.directory().join("run")] {
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    start_helper(guest, desktop, &["setpriv", &uid, &gid, "--clear-groups", "--pdeathsig=KILL"])
}

fn start_helper(guest: &Beside, desktop: &Compositor, through: &[&str]) -> Result<Process> {
    let program = Lab::program("hospes-desktop")?;
    let mut words = vec!["-i".to_owned(), format!("XDG_RUNTIME_DIR={}", desktop.runtime().display())];
    words.extend(through.iter().map(|word| (*word).to_owned()));
    words.extend([program.display().to_string(), "--run".into()]);
    words.push(guest.directory().join("run").display().to_string());
    spawn(
        "env",
        &words,
        guest.directory(),
        &guest.directory().join(format!("desktop-{}.log", desktop.user())),
    )
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
