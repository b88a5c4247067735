//! Listens in the guest for as long as the host's connection stands.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hospes_listen::tcp;
use hospes_listen::unix::{self, Name};
use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::forward::{Address, Incoming, Listen, Listening, Refuse};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::{FORWARD_ACCEPT_MS, FORWARD_PENDING};
use tokio::net::{TcpListener, UnixListener, lookup_host};
use tokio::sync::Notify;
use tokio::time::{self, Instant};

use super::calls::Number;
use super::dial::{reason, socket_path};
use super::socket::Socket;
use crate::connection::{Connection, ConnectionError};
use crate::handoff::Handoff;
use crate::session::Worker;

/// Between tries after the process has run out of descriptors, or the system of memory.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Serves a [`Listen`].
pub(crate) async fn serve(worker: Rc<Worker>, mut connection: Connection, handoff: Handoff) {
    let on = match codec::decode::<Listen>(&handoff.request) {
        Ok(Listen { on, .. }) if on.is_sane() => on,
        Ok(Listen { on, .. }) => {
            return connection.refuse(&WireError::protocol(format!("{on} is no address"))).await;
        }
        Err(error) => return connection.refuse(&WireError::protocol(error)).await,
    };
    let (listener, on) = match Listener::bind(&on, &worker.account.home).await {
        Ok(bound) => bound,
        Err(error) => return connection.refuse(&error).await,
    };
    frame::put(FrameId::FORWARD_LISTENING, &Listening { on }, connection.out());
    let exchange =
        Exchange { worker: Rc::clone(&worker), taken: Rc::new(Notify::new()), waiting: RefCell::default() };
    tokio::select! {
        // Its only way out is the connection's: there is nobody left to tell.
        _ = exchange.run(&listener, &mut connection) => {}
        () = worker.stopping() => connection.refuse(&super::session_ends()).await,
    }
}

/// The calls of one listener. Dropped, those nobody took are hung up on.
struct Exchange {
    worker: Rc<Worker>,
    /// Told when one of ours is taken.
    taken: Rc<Notify>,
    /// Ours, oldest first, with the time at which each has waited long enough.
    waiting: RefCell<Vec<(Number, Instant)>>,
}

impl Exchange {
    async fn run(&self, listener: &Listener, connection: &mut Connection) -> Result<(), ConnectionError> {
        loop {
            connection.flush().await?;
            while let Some(frame) = connection.take()? {
                match frame.id {
                    FrameId::BYE => return Ok(()),
                    FrameId::FORWARD_REFUSE => {
                        if let Ok(Refuse { call }) = frame.decode()
                            && self.waiting.borrow().iter().any(|(number, _)| *number == call)
                        {
                            self.worker.calls.refuse(&call);
                        }
                    }
                    FrameId::UNKNOWN => (),
                    id => {
                        let unknown = hospes_protocol::error::Unknown { id: id.0 };
                        frame::put(FrameId::UNKNOWN, &unknown, connection.out());
                    }
                }
            }
            self.waiting.borrow_mut().retain(|(number, _)| self.worker.calls.waits(number));
            let (count, next) = {
                let waiting = self.waiting.borrow();
                (waiting.len(), waiting.first().map(|(_, until)| *until))
            };
            tokio::select! {
                readable = connection.readable() => {
                    readable?;
                    connection.try_fill()?;
                }
                accepted = listener.accept(), if count < FORWARD_PENDING => match accepted {
                    Ok((socket, from)) => self.announce(socket, from, connection),
                    Err(error) => {
                        tracing::warn!("A forward's listener could not accept: {error}");
                        time::sleep(EXHAUSTED).await;
                    }
                },
                () = self.taken.notified(), if count > 0 => {}
                () = time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.hang_up(),
            }
        }
    }

    fn announce(&self, socket: Socket, from: String, connection: &mut Connection) {
        let mut call = Number::default();
        if getrandom::fill(&mut call).is_err() {
            return socket.reset();
        }
        self.worker.calls.add(call, socket, from.clone(), &self.taken);
        let until = Instant::now() + Duration::from_millis(FORWARD_ACCEPT_MS);
        self.waiting.borrow_mut().push((call, until));
        frame::put(FrameId::FORWARD_INCOMING, &Incoming { call, from }, connection.out());
    }

    /// Hangs up on whoever has waited long enough.
    fn hang_up(&self) {
        let now = Instant::now();
        for (number, _) in self.waiting.borrow().iter().filter(|(_, until)| *until <= now) {
            self.worker.calls.refuse(number);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        for (number, _) in self.waiting.borrow().iter() {
            self.worker.calls.refuse(number);
        }
    }
}

/// Listening sockets: several where a name has several addresses.
enum Listener {
    Tcp(Vec<TcpListener>),
    Unix(UnixListener, #[expect(dead_code, reason = "it is there to be dropped")] Name),
}

impl Listener {
    async fn bind(on: &Address, home: &Path) -> Result<(Self, Address), WireError> {
        let failed = |error: io::Error| taken(on, &error);
        match on {
            Address::Tcp { host, port } => {
                let (sockets, port) = bind_tcp(host, *port).await.map_err(failed)?;
                Ok((Self::Tcp(sockets), Address::Tcp { host: host.clone(), port }))
            }
            Address::Unix { path } => {
                let full = socket_path(home, path)?;
                let (socket, name) = bind_unix(full).map_err(failed)?;
                Ok((Self::Unix(socket, name), on.clone()))
            }
        }
    }

    async fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(sockets) => {
                let (stream, from) = poll_fn(|context| accept_any(sockets, context)).await?;
                Ok((Socket::tcp(stream.into_std()?.into())?, format!("tcp:{from}")))
            }
            Self::Unix(socket, _) => {
                let (stream, _) = socket.accept().await?;
                let from = match stream.peer_cred() {
                    Ok(peer) => format!("user {}", peer.uid()),
                    Err(_) => String::new(),
                };
                Ok((Socket::unix(stream.into_std()?.into())?, from))
            }
        }
    }
}

fn accept_any(
    sockets: &[TcpListener],
    context: &mut Context<'_>,
) -> Poll<io::Result<(tokio::net::TcpStream, SocketAddr)>> {
    for socket in sockets {
        if let Poll::Ready(accepted) = socket.poll_accept(context) {
            return Poll::Ready(accepted);
        }
    }
    Poll::Pending
}

/// On every address of a name; `*` is every address there is.
async fn bind_tcp(host: &str, port: u16) -> io::Result<(Vec<TcpListener>, u16)> {
    let (listeners, port) =
        if host == "*" { tcp::everywhere(port)? } else { tcp::each(lookup_host((host, port)).await?, port)? };
    let listeners = listeners.into_iter().map(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    Ok((listeners.collect::<io::Result<_>>()?, port))
}

fn bind_unix(path: PathBuf) -> io::Result<(UnixListener, Name)> {
    let (listener, name) = unix::listen(path)?;
    listener.set_nonblocking(true)?;
    Ok((UnixListener::from_std(listener)?, name))
}

fn taken(on: &Address, error: &io::Error) -> WireError {
    let kind = match error.kind() {
        io::ErrorKind::AddrInUse => ErrorKind::EXISTS,
        io::ErrorKind::PermissionDenied => ErrorKind::PERMISSION,
        io::ErrorKind::NotFound => ErrorKind::NOT_FOUND,
        _ => ErrorKind::OS,
    };
    let told = WireError::new(kind, format!("Could not listen on {on} in the guest: {}", reason(error)));
    match (on, error.kind()) {
        (_, io::ErrorKind::AddrInUse) => {
            told.hint("Something listens there already: choose another, or port 0")
        }
        (Address::Tcp { port: 1..1024, .. }, io::ErrorKind::PermissionDenied) => {
            told.hint("Ports below 1024 are root's: choose another, or --user root")
        }
        _ => told,
    }
}
