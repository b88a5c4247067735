//! A connection to a Wayland compositor in the event loop.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hospes_clipboard::readiness::register;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wayland_client::backend::WaylandError;
use wayland_client::protocol::wl_callback::{self, WlCallback};
use wayland_client::protocol::wl_registry::WlRegistry;
use wayland_client::{Connection, Dispatch, EventQueue, QueueHandle};

use super::BackEndError;

/// Who is at the other end of a compositor's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its process.
    pub(crate) pid: i32,
    /// Its user.
    pub(crate) uid: u32,
    /// The name that its process goes by, at most 15 bytes: for telling compositors apart, and not to be trusted.
    pub(crate) name: String,
}

/// What the events of a connection change.
pub(crate) trait State:
    Dispatch<WlRegistry, ()> + Dispatch<WlCallback, ()> + Default + 'static
{
    /// Where the answer to [`Wayland::synced`] is noted.
    fn synced(&mut self) -> &mut bool;
}

/// Notes that the compositor has answered: for `delegate_dispatch!`.
#[derive(Debug)]
pub(crate) struct Sync;

impl<S: State> Dispatch<WlCallback, (), S> for Sync {
    fn event(
        state: &mut S,
        _: &WlCallback,
        _: wl_callback::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<S>,
    ) {
        *state.synced() = true;
    }
}

/// A connection, its events and what they make.
pub(crate) struct Wayland<S: 'static> {
    connection: Connection,
    queue: EventQueue<S>,
    fd: AsyncFd<OwnedFd>,
    pub(crate) state: S,
    pub(crate) registry: WlRegistry,
    pub(crate) peer: Peer,
}

impl<S> fmt::Debug for Wayland<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wayland").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<S: State> Wayland<S> {
    /// Connects to the compositor at `socket` and hears what it offers.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, BackEndError> {
        let unreachable = |error: &dyn fmt::Display| BackEndError::Unreachable(error.to_string());
        let stream = UnixStream::connect(socket).map_err(|error| unreachable(&error))?;
        let credentials = getsockopt(&stream, PeerCredentials).map_err(|error| unreachable(&error))?;
        let name = std::fs::read_to_string(format!("/proc/{}/comm", credentials.pid())).unwrap_or_default();
        let peer = Peer { pid: credentials.pid(), uid: credentials.uid(), name: name.trim().to_owned() };
        let connection = Connection::from_socket(stream).map_err(|error| unreachable(&error))?;
        let queue = connection.new_event_queue();
        let registry = connection.display().get_registry(&queue.handle(), ());
        let fd = connection.as_fd().try_clone_to_owned().map_err(|error| unreachable(&error))?;
        let fd =
            register(fd, Interest::READABLE | Interest::WRITABLE).map_err(|error| unreachable(&error))?;
        let mut wayland = Self { connection, queue, fd, state: S::default(), registry, peer };
        wayland.synced().await?;
        Ok(wayland)
    }

    /// For new objects.
    pub(crate) fn handle(&self) -> QueueHandle<S> {
        self.queue.handle()
    }

    /// Waits until the compositor has answered all that was asked before.
    pub(crate) async fn synced(&mut self) -> Result<(), BackEndError> {
        *self.state.synced() = false;
        self.connection.display().sync(&self.queue.handle(), ());
        while !*self.state.synced() {
            self.dispatch().await?;
        }
        Ok(())
    }

    /// Sends what was asked, and lets events change the state: those that are there, or else the next that come. Losing
    /// the future loses none.
    pub(crate) async fn dispatch(&mut self) -> Result<(), BackEndError> {
        let ended = |error: &dyn fmt::Display| BackEndError::Ended(error.to_string());
        loop {
            let stuck = self.flush()?;
            let waiting = self.queue.dispatch_pending(&mut self.state).map_err(|error| ended(&error))?;
            if waiting > 0 {
                return Ok(());
            }
            let Some(guard) = self.queue.prepare_read() else { continue };
            tokio::select! {
                biased;
                ready = self.fd.readable() => {
                    let mut ready = ready.map_err(|error| ended(&error))?;
                    match guard.read() {
                        Ok(_) => (),
                        Err(WaylandError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            ready.clear_ready();
                        }
                        Err(error) => return Err(ended(&error)),
                    }
                }
                ready = self.fd.writable(), if stuck => {
                    ready.map_err(|error| ended(&error))?.clear_ready();
                }
            }
        }
    }

    /// Sends what was asked; true where the compositor takes no more for now.
    fn flush(&self) -> Result<bool, BackEndError> {
        match self.connection.flush() {
            Ok(()) => Ok(false),
            Err(WaylandError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(BackEndError::Ended(error.to_string())),
        }
    }
}
