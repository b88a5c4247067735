//! Running one script: as a transient unit of systemd's, or as a child where the daemon has no systemd of its own.
//!
//! The output goes to a file under `/run` either way, so that the script is nobody's hostage: the daemon may be
//! restarted while it runs.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hospes_protocol::limits::SCRIPT_OUTPUT;
use hospes_protocol::power::{ScriptEnd, ScriptReport};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::script::Script;
use super::systemd;

/// What runs scripts.
#[derive(Debug)]
pub(super) struct Runner {
    systemd: bool,
    scratch: PathBuf,
}

/// How a script ended.
pub(super) type Ended = (ScriptEnd, u8);

impl Runner {
    /// Scripts as units, or as children; their output in files under `scratch`.
    pub(super) const fn new(systemd: bool, scratch: PathBuf) -> Self {
        Self { systemd, scratch }
    }

    /// Runs a script with `word`, what happens, as its argument and in its environment.
    pub(super) async fn run(&self, script: &Script, word: &str, timeout: Duration) -> ScriptReport {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        let unique = format!("{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let name = script.name.clone();
        let broken = |error: String| ScriptReport {
            name: name.clone(),
            end: ScriptEnd::BROKEN,
            status: 0,
            output: error.into_bytes(),
        };
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&self.scratch);
        let output = self.scratch.join(&unique);
        if let Err(error) = made.and_then(|()| File::create(&output).map(drop)) {
            return broken(format!("Its output has no place: {error}"));
        }
        let ended = if self.systemd {
            systemd::run(&format!("hospes-script-{unique}.service"), script, word, timeout, &output).await
        } else {
            let (path, word, output) = (script.path.clone(), word.to_owned(), output.clone());
            let child = move || child(&path, &word, timeout, &output).map_err(|error| error.to_string());
            tokio::task::spawn_blocking(child).await.unwrap_or_else(|error| Err(error.to_string()))
        };
        let kept = tail(&output);
        let _ = fs::remove_file(&output);
        match (ended, kept) {
            (Ok((end, status)), Ok(output)) => ScriptReport { name, end, status, output },
            (Ok((end, status)), Err(error)) => {
                let output = format!("(its output is lost: {error})").into_bytes();
                ScriptReport { name, end, status, output }
            }
            (Err(error), _) => broken(error),
        }
    }
}

/// The last bytes of a file.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(SCRIPT_OUTPUT as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(SCRIPT_OUTPUT as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Runs a script as a child, in a process group that is killed when its time is up.
fn child(path: &Path, word: &str, timeout: Duration, output: &Path) -> io::Result<Ended> {
    let out = File::options().append(true).open(output)?;
    let mut child = Command::new(path)
        .arg(word)
        .env("HOSPES_ACTION", word)
        .stdin(Stdio::null())
        .stderr(out.try_clone()?)
        .stdout(out)
        .process_group(0)
        .spawn()?;
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let (ended, end) = mpsc::channel();
    let waiter = thread::spawn(move || ended.send(child.wait()));
    let result = match end.recv_timeout(timeout) {
        Ok(status) => Ok((ScriptEnd::ENDED, shell_status(status?))),
        Err(_) => {
            let _ = killpg(group, Signal::SIGKILL);
            Ok((ScriptEnd::TIMED_OUT, 0))
        }
    };
    let _ = waiter.join();
    result
}

fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    async fn report(text: &str, timeout: Duration) -> ScriptReport {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let runner = Runner::new(false, folder.path().join("scratch"));
        let report = runner.run(&Script { name: "script".into(), path }, "poweroff", timeout).await;
        assert_eq!(fs::read_dir(folder.path().join("scratch")).unwrap().count(), 0, "nothing is left behind");
        report
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_script_knows_what_happens_and_both_its_outputs_are_kept_in_order() {
        let report = report("echo $1 $HOSPES_ACTION; echo two >&2; echo three; exit 7", LONG).await;
        assert_eq!((report.end, report.status), (ScriptEnd::ENDED, 7));
        assert_eq!(String::from_utf8(report.output).unwrap(), "poweroff poweroff\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn the_end_of_a_long_output_is_kept() {
        let report = report("seq 1 100000", LONG).await;
        assert_eq!(report.output.len(), SCRIPT_OUTPUT);
        assert!(report.output.ends_with(b"\n99999\n100000\n"));
    }

    #[tokio::test]
    async fn a_script_whose_time_is_up_is_killed_with_all_that_it_started() {
        let report = report("sleep 1000 & echo $!; wait", Duration::from_millis(300)).await;
        assert_eq!(report.end, ScriptEnd::TIMED_OUT);
        assert!(report.objects());
        let pid: i32 = String::from_utf8(report.output).unwrap().trim().parse().unwrap();
        // It is killed when the kernel next runs it; as an orphan it may then be waited for by whoever inherits it.
        let end = Instant::now() + LONG;
        loop {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z") || stat.contains(") X") {
                break;
            }
            assert!(Instant::now() < end, "it was not killed: {stat}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[tokio::test]
    async fn a_signal_shows_as_a_shell_shows_it_and_a_broken_script_says_why() {
        assert_eq!(report("kill -9 $$", LONG).await.status, 137);
        let folder = tempfile::tempdir().unwrap();
        let runner = Runner::new(false, folder.path().join("scratch"));
        let script = Script { name: "gone".into(), path: "/nonexistent/gone".into() };
        let report = runner.run(&script, "poweroff", LONG).await;
        assert_eq!(report.end, ScriptEnd::BROKEN);
        assert!(report.objects() && String::from_utf8(report.output).unwrap().contains("No such file"));
    }
}
