//! This machine's listening sockets.

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use hospes_listen::tcp;
use hospes_listen::unix::{self, Name};
use hospes_protocol::forward::Address;

use super::local::Socket;

/// One listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix, with its name in the file system.
    Unix(UnixListener, Name),
}

/// Listens, on every address that a name has (both of `localhost`'s) at the same port; `*` is every address there is.
/// Gives the address back with the port that was chosen for port zero.
///
/// # Errors
/// The operating system's.
pub fn listen(on: &Address) -> io::Result<(Vec<Listener>, Address)> {
    match on {
        Address::Tcp { host, port } => {
            let (listeners, port) = if host == "*" {
                tcp::everywhere(*port)?
            } else {
                tcp::each((host.as_str(), *port).to_socket_addrs()?, *port)?
            };
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            Ok((listeners, Address::Tcp { host: host.clone(), port }))
        }
        Address::Unix { path } => {
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
            let (listener, name) = unix::listen(path)?;
            Ok((vec![Listener::Unix(listener, name)], on.clone()))
        }
    }
}

impl Listener {
    /// Takes its name out of the file system, if it has one: nobody new finds it.
    pub fn withdraw(&self) {
        if let Self::Unix(_, name) = self {
            name.remove();
        }
    }

    /// Takes the next caller, and says who it is.
    ///
    /// # Errors
    /// The operating system's; asking again later is right.
    pub fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => listener.accept().map(|(stream, from)| (stream.into(), from.to_string())),
            Self::Unix(listener, name) => {
                listener.accept().map(|(stream, _)| (stream.into(), name.path().display().to_string()))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}
