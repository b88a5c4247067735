//! The process that stays outside.
#![expect(unsafe_code, reason = "fork(2) has no safe binding")]

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

use super::SandboxError;

/// The child that has the host's files in view. It ends when this value, or this process, does.
pub struct Door {
    child: Pid,
    life: Option<UnixStream>,
}

impl Door {
    /// Forks the child. There, `serve` is to start what it serves and return; the paths in `sockets`, which are there
    /// already, are removed in the end. Only before the process has threads.
    pub fn open(sockets: &[PathBuf], serve: impl FnOnce() -> io::Result<()>) -> Result<Self, SandboxError> {
        let (life, other) = UnixStream::pair().map_err(SandboxError::Door)?;
        // SAFETY: the process has no other thread yet, so the child has whole locks and a whole heap.
        match unsafe { fork() }.map_err(|error| SandboxError::Door(error.into()))? {
            ForkResult::Parent { child } => Ok(Self { child, life: Some(life) }),
            ForkResult::Child => {
                drop(life);
                std::process::exit(outside(other, sockets, serve))
            }
        }
    }
}

fn outside(mut life: UnixStream, sockets: &[PathBuf], serve: impl FnOnce() -> io::Result<()>) -> i32 {
    let ours: Vec<_> = sockets.iter().map(|socket| (socket, identity(socket))).collect();
    // Who stops the device stops it with these, at its group or its service as a whole; the end is ours to tidy up.
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    if let Err(error) = signals.thread_block() {
        tracing::warn!(%error, "Failed to block signals");
    }
    let _ = rustix::thread::set_name(c"host-hv door");
    let code = match serve() {
        // Nobody writes here: this is the end of the other process.
        Ok(()) => life.read(&mut [0]).map_or(1, |_| 0),
        Err(error) => {
            tracing::error!(%error, "The process outside of the sandbox cannot serve");
            1
        }
    };
    for (socket, identity_then) in ours {
        // Another device may have taken its place by now.
        if identity_then.is_some() && identity(socket) == identity_then {
            drop(std::fs::remove_file(socket));
        }
    }
    code
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for Door {
    fn drop(&mut self) {
        self.life.take();
        let _ = waitpid(self.child, None);
    }
}
