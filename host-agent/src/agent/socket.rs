//! The agent's socket: mode 0600 in a directory of ours, one agent at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener as StdListener;

use hospes_listen::unix::{self, Name};
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
    /// Where the socket is ours.
    _name: Option<Name>,
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
            return Ok(Self { listener: fd.into(), kept: Kept { _lock: lock, _name: None } });
        }
        // Somebody listens: a service manager, which starts an agent for whoever connects, as was just done.
        let (listener, name) = match unix::listen(path.clone()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(AgentError::Running { path });
            }
            bound => bound.map_err(|source| AgentError::Io { act: "make the agent's socket", source })?,
        };
        Ok(Self { listener, kept: Kept { _lock: lock, _name: Some(name) } })
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
