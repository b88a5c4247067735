//! Listens in the guest for as long as the host's connection stands.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::forward::{Address, Incoming, Listen, Listening, Refuse};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::{FORWARD_ACCEPT_MS, FORWARD_PENDING};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::{TcpListener, TcpSocket, UnixListener, lookup_host};
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
/// Callers that the kernel holds for each socket.
const BACKLOG: i32 = 128;

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
                let socket = UnixListener::from_std(socket).map_err(failed)?;
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

/// Listens on every address of a name, as ssh does on both of `localhost`'s; `*` is every address there is. At least
/// one must do: a kernel without IPv6 has a name for its loopback all the same.
async fn bind_tcp(host: &str, port: u16) -> io::Result<(Vec<TcpListener>, u16)> {
    let addresses: Vec<SocketAddr> = if host == "*" {
        vec![([0; 16], port).into(), ([0; 4], port).into()]
    } else {
        lookup_host((host, port)).await?.collect()
    };
    let (mut sockets, mut bound, mut first) = (Vec::new(), port, None);
    for mut address in addresses {
        address.set_port(bound);
        match bind_one(address) {
            Ok(socket) => {
                bound = socket.local_addr()?.port();
                sockets.push(socket);
                // One socket on the IPv6 wildcard takes IPv4's callers too.
                if host == "*" {
                    break;
                }
            }
            // Half of a pair that somebody else has is no listener, where the port was asked for.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && port > 0 => return Err(error),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    match first {
        Some(error) if sockets.is_empty() => Err(error),
        None if sockets.is_empty() => Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address")),
        _ => Ok((sockets, bound)),
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG.unsigned_abs())
}

/// A socket's name in the file system; removed with it, if it is still ours.
struct Name {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for Name {
    fn drop(&mut self) {
        if id(&self.path).is_ok_and(|id| id == self.id) {
            // There is nobody left to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let found = path.symlink_metadata()?;
    Ok((found.dev(), found.ino()))
}

/// Listens at a path, for the user alone. A socket that nobody listens at any more is replaced; anything else is not.
fn bind_unix(path: PathBuf) -> io::Result<(StdUnixListener, Name)> {
    let socket = match bind_path(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(&path) => {
            std::fs::remove_file(&path)?;
            bind_path(&path)?
        }
        bound => bound?,
    };
    let id = id(&path)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok((StdUnixListener::from(socket), Name { path, id }))
}

fn bind_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The name is made with the socket's own mode: nobody else can come in between.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

fn is_stale(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refused)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (first, name) = bind_unix(path.clone()).unwrap();
        assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let second = bind_unix(path.clone()).map(drop).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        std::mem::forget(name);
        drop(first);
        assert!(path.exists(), "left behind, as by a worker that was killed");
        let (third, name) = bind_unix(path.clone()).unwrap();
        drop((third, name));
        assert!(!path.exists());
        std::fs::write(&path, b"precious").unwrap();
        bind_unix(path.clone()).map(drop).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_name_that_became_somebody_elses_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let ours = bind_unix(path.clone()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let theirs = bind_unix(path.clone()).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
        assert!(!path.exists());
    }

    #[test]
    fn localhost_is_every_loopback_at_one_port() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (sockets, port) = bind_tcp("localhost", 0).await.unwrap();
            assert!(port > 0 && !sockets.is_empty());
            for socket in &sockets {
                let address = socket.local_addr().unwrap();
                assert!(address.ip().is_loopback() && address.port() == port);
            }
            assert_eq!(bind_tcp("127.0.0.1", port).await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        });
    }
}
