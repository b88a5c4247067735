//! The agent: keeps a control session to each VM and hands tickets to commands.
//!
//! One thread and one event loop. Each VM has a task ([`session`]) that is connected or waits for a reason to try
//! again; each client has a task ([`serve`]) that answers its questions from what the sessions know ([`state`]).
//! Nothing ticks: a VM whose socket is not there is tried again when it appears, and only one that gives no such event
//! is tried now and then, at most once a minute.
//!
//! ```text
//!             a reason to try: start, the socket appears, an announcement, a question, the back-off's end
//!   Waiting ----------------------------------------------------------------------------------> Connecting
//!      ^  ^                                                                                       |     |
//!      |  +---------------------------------- failed ---------------------------------------------+     |
//!      +------------------ closed ----------------- Connected <----------- handshake, CONTROL ----------+
//! ```

pub mod announce;
pub mod ask;
pub mod clipboard;
mod folders;
mod qmp;
pub mod serve;
pub mod session;
pub mod socket;
pub mod state;
mod time;

use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::agent::state::Agent;
use crate::dirs::DirsError;
use crate::endpoint::Endpoint;
use crate::pins::PinError;
use crate::registry::RegistryError;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No place for the socket.
    #[error(transparent)]
    Dirs(#[from] DirsError),
    /// No place for the VMs' files.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No place for the pins.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// Another one runs.
    #[error("Another agent serves {}", path.display())]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("Cannot {act}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Runs the agent until it is told to end. `announce` are endpoints on which it listens for guests that were not
/// added.
///
/// # Errors
/// [`AgentError`].
pub fn run(announce: Vec<Endpoint>) -> Result<(), AgentError> {
    let socket = socket::AgentSocket::open()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| AgentError::Io { act: "start the event loop", source })?;
    let result = LocalSet::new().block_on(&runtime, serve_all(socket, announce));
    // A dial that is under way may take seconds more; nobody waits for it.
    runtime.shutdown_background();
    result
}

async fn serve_all(socket: socket::AgentSocket, announce: Vec<Endpoint>) -> Result<(), AgentError> {
    let at = |act| move |source| AgentError::Io { act, source };
    let agent = Rc::new(Agent::new()?);
    let (listener, _kept) = socket.listen().map_err(at("listen for commands"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(at("take signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(at("take signals"))?;
    agent.log(None, format_args!("hospes agent {} serves", env!("CARGO_PKG_VERSION")));
    agent.reload();
    tokio::task::spawn_local(announce::vsock(Rc::clone(&agent)));
    tokio::task::spawn_local(time::follow_this_machine(Rc::clone(&agent)));
    for endpoint in announce {
        tokio::task::spawn_local(announce::unix(Rc::clone(&agent), endpoint));
    }
    tokio::select! {
        error = serve::accept(listener, Rc::clone(&agent)) => Err(at("take commands")(error)),
        error = state::watch(Rc::clone(&agent)) => Err(at("watch the VMs' files")(error)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
