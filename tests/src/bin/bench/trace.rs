//! The system calls of a server of shared folders, counted by strace.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Deadline, FolderServer};

/// strace on a server.
pub(crate) struct Trace {
    child: Child,
    directory: tempfile::TempDir,
}

impl Trace {
    /// Begins to count.
    pub(crate) fn start(server: &FolderServer) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let pids: Vec<String> = server.pids()?.iter().map(u32::to_string).collect();
        let mut child = Command::new("strace")
            .args(["-f", "-c", "-o"])
            .arg(directory.path().join("calls"))
            .args(["-p", &pids.join(",")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("strace does not start: run `make setup`")?;
        Deadline::after(Duration::from_secs(10)).poll("strace to take hold of the server", || {
            ensure!(child.try_wait()?.is_none(), "strace could not take hold of {}", server.name);
            let all = pids.iter().all(|pid| {
                fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| {
                    tasks.flatten().all(|task| {
                        fs::read_to_string(task.path().join("status"))
                            .is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
                    })
                })
            });
            Ok(all.then_some(()))
        })?;
        Ok(Self { child, directory })
    }

    /// Ends it; the calls so far.
    pub(crate) fn count(mut self) -> Result<f64> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.child.wait()?;
        let table = fs::read_to_string(self.directory.path().join("calls"))?;
        let total = table.lines().find(|line| line.trim_end().ends_with("total"));
        let calls = total.and_then(|line| line.split_whitespace().nth(3));
        calls
            .and_then(|calls| calls.parse().ok())
            .with_context(|| format!("strace counted nothing:\n{table}"))
    }
}
