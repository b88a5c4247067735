//! The guest's daemon and worker as processes of this machine: everything but the VM.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use tempfile::TempDir;

use crate::{Deadline, Host, Lab, Process, spawn};

/// A daemon with files of its own, serving a Unix socket. Its workers are this user's.
#[derive(Debug)]
pub struct Beside {
    daemon: Option<Process>,
    // Ended before what it has mounted would be in the way of the directory's end.
    mounter: Option<Process>,
    directory: TempDir,
    /// The bus on which it asks who sits at the screen.
    seat: Option<String>,
}

impl Beside {
    /// Starts a daemon under this policy.
    pub fn start(policy: &str) -> Result<Self> {
        Self::start_with(policy, None)
    }

    /// Starts one that asks the logind on this bus who sits at the screen. Otherwise whoever comes last does.
    pub fn seated(policy: &str, bus: &str) -> Result<Self> {
        Self::start_with(policy, Some(bus.to_owned()))
    }

    fn start_with(policy: &str, seat: Option<String>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir()?;
        for name in ["etc", "state", "run"] {
            fs::create_dir(directory.path().join(name))?;
        }
        let machine = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
        fs::write(directory.path().join("machine-id"), machine)?;
        fs::write(directory.path().join("etc/tools.toml"), policy)?;
        let mut guest = Self { daemon: None, mounter: None, directory, seat };
        guest.restart()?;
        Ok(guest)
    }

    /// Kills the daemon, as a crash does, and starts another.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon = None;
        let at = |name: &str| self.path(name).display().to_string();
        let mut words = vec!["--listen".to_owned(), format!("unix:{}", at("socket"))];
        for name in ["etc", "state", "run", "machine-id"] {
            words.extend([format!("--{name}"), at(name)]);
        }
        words.extend(["--worker-command".to_owned(), Lab::program("hospes-session")?.display().to_string()]);
        if let Some(bus) = &self.seat {
            words.extend(["--seat-bus".to_owned(), bus.clone()]);
        }
        let log = self.path("log");
        let mut daemon = spawn(Lab::program("hospes-toolsd")?, &words, self.directory.path(), &log)?;
        Deadline::after(Duration::from_secs(30)).poll("the daemon's socket", || {
            daemon.expect_alive()?;
            Ok(UnixStream::connect(self.path("socket")).is_ok().then_some(()))
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Starts what mounts for users, as only root can.
    pub fn start_mount(&mut self) -> Result<()> {
        let run = self.path("run");
        let words = ["--run".to_owned(), run.display().to_string()];
        let log = self.path("mount.log");
        let mut mounter = spawn(Lab::program("hospes-mount")?, &words, self.directory.path(), &log)?;
        Deadline::after(Duration::from_secs(30)).poll("hospes-mount's socket", || {
            mounter.expect_alive()?;
            Ok(UnixStream::connect(run.join("mount.sock")).is_ok().then_some(()))
        })?;
        self.mounter = Some(mounter);
        Ok(())
    }

    /// A host that knows it as `vm`, and acts in it as this user.
    pub fn host(&self) -> Result<Host> {
        let host = Host::sharing_identity()?;
        host.add_socket("vm", &self.socket())?;
        Ok(host)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Process::pid)
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// All that the daemon and its workers have logged since it was last started.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path("log"))?)
    }

    /// Kills the workers, as a crash does.
    pub fn kill_workers(&self) {
        for pid in self.workers() {
            // It may have ended by itself.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// The workers that run, by the daemon's word, made sure by their name.
    pub fn workers(&self) -> Vec<nix::unistd::Pid> {
        let log = self.log().unwrap_or_default();
        let started = log
            .lines()
            .filter_map(|line| line.split_once("Started a worker, process ")?.1.trim().parse().ok());
        started
            .filter(|pid: &i32| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == "hospes-session")
            })
            .map(nix::unistd::Pid::from_raw)
            .collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A directory beside the daemon's own.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.daemon = None;
        self.kill_workers();
        if self.mounter.take().is_some() {
            // It was killed, and what it had mounted stays: the directory could not go.
            let mounts = fs::read_dir(self.path("run/clip")).into_iter().flatten().flatten();
            for point in mounts {
                let _ = nix::mount::umount2(&point.path(), nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}
