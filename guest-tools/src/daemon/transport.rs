//! Where hosts connect: the guest's vsock port, or a Unix socket for VMMs and tests that need one.
#![expect(unsafe_code, reason = "a promise to tokio about our listening sockets")]

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use hospes_protocol::limits::GUEST_PORT;
use nix::sys::socket::Backlog;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener};

use crate::async_fd::{self, OneFd};

/// Where the daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The guest's port on its vsock device.
    Vsock,
    /// A Unix socket. Who may connect is what the file system says.
    Unix(PathBuf),
}

impl Address {
    /// Reads `vsock` or `unix:PATH`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == "vsock" => Some(Self::Vsock),
            Some(("unix", path)) if !path.is_empty() => Some(Self::Unix(path.into())),
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock => write!(f, "vsock port {GUEST_PORT}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Who connected, as far as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The host, by vsock.
    Host,
    /// Somebody else by vsock: a program in this guest (CID 1), or in one of its own guests.
    Cid(u32),
    /// Whoever may open the Unix socket.
    Unix,
}

impl Peer {
    /// Whether it may say anything at all.
    #[must_use]
    pub const fn may_speak(self) -> bool {
        !matches!(self, Self::Cid(_))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("an unproved host"),
            Self::Cid(cid) => write!(f, "vsock cid {cid}, which is not the host"),
            Self::Unix => f.write_str("an unproved host by Unix socket"),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<Socket>,
}

// SAFETY: either kind owns one descriptor, and no method of ours replaces it.
unsafe impl OneFd for Socket {}

#[derive(Debug)]
enum Socket {
    Vsock(VsockListener),
    Unix(UnixListener),
}

impl std::os::fd::AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        match self {
            Self::Vsock(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

impl Listener {
    /// Listens. A left-over Unix socket of the same name is replaced, any other file is not.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bind(address: &Address) -> io::Result<Self> {
        Self::bind_port(address, GUEST_PORT)
    }

    /// As [`bind`](Self::bind), on another vsock port.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bind_port(address: &Address, port: u32) -> io::Result<Self> {
        let socket = match address {
            Address::Vsock => {
                let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
                listener.set_nonblocking(true)?;
                // The library asks for 128, and hundreds of commands may come at once: the kernel would refuse them.
                nix::sys::socket::listen(&listener, Backlog::MAXCONN)?;
                Socket::Vsock(listener)
            }
            Address::Unix(path) => {
                remove_left_over(path)?;
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Socket::Unix(listener)
            }
        };
        Ok(Self { socket: async_fd::register(socket, Interest::READABLE)? })
    }

    /// The next connection.
    ///
    /// # Errors
    /// What the kernel says. [`is_passing`] tells errors of one connection from those of the listener.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        let accepted = self.socket.async_io(Interest::READABLE, |socket| match socket {
            Socket::Vsock(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let peer = match address.cid() {
                    VMADDR_CID_HOST => Peer::Host,
                    cid => Peer::Cid(cid),
                };
                Ok((OwnedFd::from(stream), peer))
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((OwnedFd::from(stream), Peer::Unix))
            }
        });
        let (fd, peer) = accepted.await?;
        Ok((Stream::new(fd)?, peer))
    }
}

/// Whether an error of accept(2) is of one connection, and the next may come at once.
#[must_use]
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

fn remove_left_over(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A connection of either kind: a descriptor that can be handed over.
#[derive(Debug)]
pub struct Stream {
    fd: AsyncFd<OwnedFd>,
}

impl Stream {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: async_fd::register(fd, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Reads what is there, at least one byte; 0 at the end.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.fd.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, bytes)?)).await
    }

    /// Reads what is there now, without waiting; `None` where nothing is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read_now(&self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        match nix::unistd::read(self.fd.get_ref(), bytes) {
            Ok(n) => Ok(Some(n)),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written =
                self.fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Writes what the kernel takes now: for a word to a peer that gets no more of our time.
    pub fn write_now(&self, bytes: &[u8]) {
        let _ = nix::unistd::write(self.fd.get_ref(), bytes);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_vsock_or_a_path() {
        assert_eq!(Address::parse("vsock"), Some(Address::Vsock));
        assert_eq!(Address::parse("unix:/run/x"), Some(Address::Unix("/run/x".into())));
        assert_eq!(Address::parse("unix:"), None);
        assert_eq!(Address::parse("tcp:1"), None);
    }

    #[test]
    fn only_the_host_may_speak_on_vsock() {
        assert!(Peer::Host.may_speak() && Peer::Unix.may_speak());
        assert!(!Peer::Cid(1).may_speak() && !Peer::Cid(7).may_speak());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listen");
        drop(Listener::bind(&Address::Unix(path.clone())).unwrap());
        drop(Listener::bind(&Address::Unix(path.clone())).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert_eq!(Listener::bind(&Address::Unix(path)).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
