//! The users' workers: found by their socket, started by systemd, given connections.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hospes_protocol::error::{ErrorKind, WireError};
use tokio::time::{self, Instant};

use super::systemd::{self, Started};
use super::transport::Stream;
use super::users::Account;
use crate::handoff::{self, Handoff, HandoffError, Offer};
use crate::watch::Watcher;

/// How long a session may take to begin: PAM modules may ask the network.
const START: Duration = Duration::from_secs(60);

/// How long a worker that runs may take for a connection, before the host is told that it is under way.
const PROMPT: Duration = Duration::from_secs(1);

/// How workers are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starter {
    /// By systemd, as `hospes-session@UID.socket` and its service.
    Systemd,
    /// By this program, as the daemon's own user: for tests, and for machines without systemd. Its standard input is
    /// the listening socket.
    Command(PathBuf),
}

/// The users' workers.
#[derive(Debug)]
pub struct Workers {
    run: PathBuf,
    starter: Starter,
}

/// Why a worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// systemd did not.
    #[error(transparent)]
    Systemd(#[from] systemd::UnitError),
    /// The socket's directory cannot be watched.
    #[error("The session's socket cannot be waited for: {0}")]
    Watch(io::Error),
    /// The program did not.
    #[error("{} could not be started: {source}", program.display())]
    Command {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Workers {
    /// Workers with their sockets under `run`/session.
    #[must_use]
    pub const fn new(run: PathBuf, starter: Starter) -> Self {
        Self { run, starter }
    }

    /// Gives a connection to the user's worker, which is started if it must be. Where that takes a while the host gets
    /// the handoff's preamble first: its patience ends with our proof, and a session may take longer to begin.
    ///
    /// # Errors
    /// `SESSION` where there is no worker to be had, or none in time. The connection is still ours, and what is left of
    /// the preamble is due on it.
    pub(super) async fn hand_over(
        &self,
        account: &Account,
        connection: &Stream,
        handoff: &mut Handoff,
    ) -> Result<(), WireError> {
        let name = &account.name;
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!("The session of {name} takes no connection: {error}");
            WireError::new(ErrorKind::SESSION, format!("The session of {name} could not be started: {error}"))
                .hint(format!("In the guest: systemctl status hospes-session@{}.service", account.uid))
        };
        match self.attempt(account, connection, handoff).await {
            Ok(()) => Ok(()),
            Err(Attempt::Late) => {
                let message =
                    format!("The session of {name} did not begin within {} seconds", START.as_secs());
                Err(WireError::new(ErrorKind::SESSION, message)
                    .hint(format!("In the guest: systemctl status hospes-session@{}.service", account.uid)))
            }
            Err(error) => Err(failed(&error)),
        }
    }

    async fn attempt(
        &self,
        account: &Account,
        connection: &Stream,
        handoff: &mut Handoff,
    ) -> Result<(), Attempt> {
        let socket = self.run.join("session").join(format!("{}.sock", account.uid));
        let start = match handoff::offer(&socket, connection.as_fd(), handoff, PROMPT).await {
            Ok(Offer::Taken) => return Ok(()),
            // systemd is starting one, or it is busy.
            Ok(Offer::Withdrawn) => false,
            // A worker that ended in between: systemd holds its socket and starts another for who waits there.
            Err(HandoffError::Died) => false,
            Err(HandoffError::NoSocket { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        let end = Instant::now() + START;
        let late = |_| Attempt::Late;
        let preamble = std::mem::take(&mut handoff.preamble);
        time::timeout_at(end, connection.write_all(&preamble))
            .await
            .map_err(late)?
            .map_err(Attempt::Preamble)?;
        if start {
            time::timeout_at(end, self.start(account, &socket)).await.map_err(late)??;
        }
        let left = end.saturating_duration_since(Instant::now());
        match handoff::offer(&socket, connection.as_fd(), handoff, left).await? {
            Offer::Taken => Ok(()),
            Offer::Withdrawn => Err(Attempt::Late),
        }
    }

    async fn start(&self, account: &Account, socket: &Path) -> Result<(), StartError> {
        match &self.starter {
            Starter::Systemd => {
                let appears = Appears::new(socket);
                match systemd::start_unit(&format!("hospes-session@{}.socket", account.uid)).await? {
                    Started::Done => Ok(()),
                    // Until somebody's patience ends: see START.
                    Started::Asked => Ok(appears.wait().await?),
                }
            }
            Starter::Command(program) => start_command(program, socket)
                .map_err(|source| StartError::Command { program: program.clone(), source }),
        }
    }
}

/// Waits for a socket to be made.
struct Appears<'a> {
    socket: &'a Path,
    watcher: io::Result<Watcher>,
}

impl<'a> Appears<'a> {
    /// Before the socket is asked for, so that its making cannot be missed.
    fn new(socket: &'a Path) -> Self {
        let watcher = Watcher::new().map(|mut watcher| {
            let directory = socket.parent().unwrap_or(socket);
            watcher.add(directory, None);
            watcher.add(directory.parent().unwrap_or(directory), Some("session"));
            watcher
        });
        Self { socket, watcher }
    }

    async fn wait(self) -> Result<(), StartError> {
        let mut watcher = self.watcher.map_err(StartError::Watch)?;
        while !self.socket.exists() {
            watcher.changed().await.map_err(StartError::Watch)?;
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum Attempt {
    /// The session did not begin in [`START`].
    #[error("The session did not begin in time")]
    Late,
    #[error("The host takes no answer: {0}")]
    Preamble(io::Error),
    #[error(transparent)]
    Handoff(#[from] HandoffError),
    #[error(transparent)]
    Start(#[from] StartError),
}

fn start_command(program: &Path, socket: &Path) -> io::Result<()> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if socket.exists() {
        std::fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    let mut child = Command::new(program).stdin(Stdio::from(OwnedFd::from(listener))).spawn()?;
    tracing::info!("Started a worker, process {}", child.id());
    // It is waited for so that it leaves no zombie; only tests and machines without systemd pay this thread.
    std::thread::spawn(move || child.wait());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_waited_for_even_where_its_directory_comes_with_it() {
        let run = tempfile::tempdir().unwrap();
        let socket = run.path().join("session/1000.sock");
        let appears = Appears::new(&socket);
        let made = async {
            tokio::task::yield_now().await;
            std::fs::create_dir(run.path().join("session")).unwrap();
            tokio::task::yield_now().await;
            UnixListener::bind(&socket).unwrap()
        };
        let (waited, _listener) = tokio::join!(appears.wait(), made);
        waited.unwrap();
    }
}
