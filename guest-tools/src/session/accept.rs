//! The worker's life: taking connections over, waiting for children, and ending when there is nothing left to do.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::time;

use super::{Busy, Worker, dispatch};
use crate::connection::Connection;
use crate::exec::environment::Account;
use crate::handoff::{self, HandoffError};
use crate::sys::listener::{self, Source};
use crate::sys::signals::{self, Signals, Told};

/// How long a worker with nothing to do waits for more.
pub const IDLE: Duration = Duration::from_mins(10);
/// How long a daemon may take for a handoff's bytes.
const HANDOFF: Duration = Duration::from_secs(10);
/// Between tries after the process has run out of descriptors, or the system of memory.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Why the worker could not begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No listening socket.
    #[error("No socket to listen at: {0}")]
    Socket(io::Error),
    /// The user database has no entry for us.
    #[error("The user database has no user with the id {0}")]
    NoUser(u32),
    /// The operating system refused what a worker needs.
    #[error("Could not {act}: {source}")]
    Os {
        /// What was tried.
        act: &'static str,
        /// Its words.
        source: io::Error,
    },
}

/// Runs the worker until it has nothing left to do, or is told to end. It listens at `path`, or at the socket it was
/// started with.
///
/// # Errors
/// [`SessionError`].
pub fn run(path: Option<&Path>, idle: Duration) -> Result<(), SessionError> {
    let os = |act| move |source| SessionError::Os { act, source };
    let source = path.map_or_else(listener::inherited, listener::bind).map_err(SessionError::Socket)?;
    signals::keep_descriptors_to_ourselves();
    signals::adopt_orphans().map_err(os("become the parent of orphans"))?;
    let uid = nix::unistd::geteuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten().ok_or(SessionError::NoUser(uid.as_raw()))?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(os("start its runtime"))?;
    let worker = Worker::new(Account::from(user)).map_err(os("open /dev/null"))?;
    // A task like every other: waking it costs no system call, waking what `block_on` itself runs does.
    let serving = async move {
        let signals = Signals::new().map_err(os("watch for signals"))?;
        serve(&worker, source, &signals, idle).await.map_err(os("take connections"))
    };
    runtime.block_on(async {
        let ended = tokio::task::spawn_local(serving).await;
        ended.unwrap_or_else(|error| Err(SessionError::Os { act: "go on", source: error.into() }))
    })
}

async fn serve(worker: &Rc<Worker>, source: Source, signals: &Signals, idle: Duration) -> io::Result<()> {
    let (listener, own_user) = match source {
        Source::Systemd(listener) => (listener, false),
        Source::Own(listener) => (listener, true),
    };
    let listener = tokio_listener(listener)?;
    let mut stopping = false;
    loop {
        if stopping && worker.is_idle() {
            return Ok(());
        }
        tokio::select! {
            biased;
            told = signals.next() => {
                let Told { children, terminate } = told?;
                if children {
                    worker.children.reap();
                }
                if terminate {
                    stopping = true;
                    worker.stop();
                }
            }
            () = worker.quiet.notified() => worker.tidy(),
            accepted = listener.accept(), if !stopping => match accepted {
                Ok((stream, _)) => {
                    // Busy from here on: the task itself may not have begun when we next look.
                    let busy = worker.busy();
                    drop(tokio::task::spawn_local(take_over(Rc::clone(worker), busy, stream, own_user)));
                }
                // Whoever waits is still in the backlog.
                Err(error) => {
                    tracing::error!("A connection could not be accepted: {error}");
                    time::sleep(EXHAUSTED).await;
                }
            },
            () = time::sleep(idle), if worker.is_idle() && !stopping => {
                if worker.is_idle() {
                    return Ok(());
                }
            }
        }
    }
}

fn tokio_listener(listener: StdListener) -> io::Result<UnixListener> {
    UnixListener::from_std(listener)
}

/// Takes one connection over from the daemon and serves it.
async fn take_over(worker: Rc<Worker>, _busy: Busy, stream: UnixStream, own_user: bool) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || (own_user && peer.uid() == worker.account.uid) => {}
        Ok(peer) => return tracing::warn!("User {} may not hand connections over", peer.uid()),
        Err(error) => return tracing::warn!("Nobody knows who hands a connection over: {error}"),
    }
    let (fd, mut handoff) = match time::timeout(HANDOFF, handoff::receive(&stream)).await {
        Ok(Ok(taken)) => taken,
        // Its daemon has offered it anew, or died.
        Ok(Err(HandoffError::Died)) => return tracing::debug!("A connection was withdrawn"),
        Ok(Err(error)) => return tracing::warn!("A connection was not taken over: {error}"),
        Err(_) => return tracing::warn!("A connection was not handed over in time"),
    };
    drop(stream);
    let rest = std::mem::take(&mut handoff.rest);
    let preamble = std::mem::take(&mut handoff.preamble);
    match Connection::new(fd, &rest, preamble) {
        Ok(connection) => {
            drop(rest);
            dispatch::serve(worker, connection, handoff).await;
        }
        Err(error) => tracing::error!("A connection could not be watched: {error}"),
    }
}
