//! The agent's socket: mode 0600 in a directory of ours, one agent at a time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;

use crate::agent::AgentError;
use crate::dirs;
use crate::sys::activation;

/// The socket before the event loop runs.
#[derive(Debug)]
pub struct AgentSocket {
    listener: StdListener,
    kept: Kept,
}

/// What holds the agent's place while it runs. Dropped, the socket's file goes.
#[derive(Debug)]
pub struct Kept {
    /// Held by lock: not the file but the lock says that an agent runs, and the kernel drops it with the process.
    _lock: Flock<File>,
    /// Ours to remove.
    path: Option<PathBuf>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

impl AgentSocket {
    /// The service manager's socket, or one of our own.
    ///
    /// # Errors
    /// [`AgentError::Running`], and what keeps the socket from being made.
    pub fn open() -> Result<Self, AgentError> {
        // Before anything else takes its number.
        let given = activation::socket();
        let dir = dirs::runtime()?;
        dirs::create_private(&dir)?;
        let path = dir.join("agent.sock");
        let lock = File::options().create(true).append(true).mode(0o600).open(dir.join("agent.lock"));
        let lock = lock.map_err(|source| AgentError::Io { act: "open the agent's lock", source })?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            return Err(AgentError::Running { path });
        };
        if let Some(fd) = given {
            return Ok(Self { listener: fd.into(), kept: Kept { _lock: lock, path: None } });
        }
        // A service manager's: it starts an agent for whoever connects, as we just did.
        if StdStream::connect(&path).is_ok() {
            return Err(AgentError::Running { path });
        }
        // With the lock ours and nobody listening, a file that is there was left by an agent that was killed.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(AgentError::Io { act: "remove the last agent's socket", source: error });
            }
            _ => (),
        }
        let bound = StdListener::bind(&path).and_then(|listener| {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        });
        let listener = bound.map_err(|source| AgentError::Io { act: "make the agent's socket", source })?;
        Ok(Self { listener, kept: Kept { _lock: lock, path: Some(path) } })
    }

    /// The socket in the event loop.
    ///
    /// # Errors
    /// The operating system's.
    pub fn listen(self) -> io::Result<(UnixListener, Kept)> {
        self.listener.set_nonblocking(true)?;
        Ok((UnixListener::from_std(self.listener)?, self.kept))
    }
}
