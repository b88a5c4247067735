//! `AF_VSOCK`, which hosts have on Linux alone.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

#[cfg(target_os = "linux")]
pub use linux::{accept, connect, listen};
#[cfg(not(target_os = "linux"))]
pub use other::{accept, connect, listen};

#[cfg(target_os = "linux")]
mod linux {
    #![expect(unsafe_code, reason = "accept4(2) gives a bare descriptor")]

    use super::{Instant, OwnedFd, io};
    use std::os::fd::{AsFd, AsRawFd, FromRawFd};

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::socket::sockopt::SocketError;
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr};
    use nix::sys::socket::{accept4, bind, getpeername, getsockopt, socket};

    use crate::endpoint::wait_writable;

    /// Connects to a guest's port.
    ///
    /// # Errors
    /// The operating system's; `TimedOut` at the deadline.
    pub fn connect(cid: u32, port: u32, deadline: Instant) -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        match nix::sys::socket::connect(fd.as_raw_fd(), &VsockAddr::new(cid, port)) {
            Ok(()) => (),
            Err(Errno::EINPROGRESS) => {
                wait_writable(fd.as_fd(), Some(deadline))?;
                let error = getsockopt(&fd, SocketError)?;
                if error != 0 {
                    return Err(io::Error::from_raw_os_error(error));
                }
            }
            Err(error) => return Err(error.into()),
        }
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty()))?;
        Ok(fd)
    }

    /// Listens on a port of ours for any guest.
    ///
    /// # Errors
    /// The operating system's.
    pub fn listen(port: u32) -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(fd.as_raw_fd(), &VsockAddr::new(u32::MAX, port))?;
        nix::sys::socket::listen(&fd, Backlog::new(16)?)?;
        Ok(fd)
    }

    /// A guest that dialled us, non-blocking, and its context id.
    ///
    /// # Errors
    /// `WouldBlock` where there is none, and the operating system's.
    pub fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
        let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: accept4 made the descriptor for us this moment; nothing else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let peer: VsockAddr = getpeername(fd.as_raw_fd())?;
        Ok((fd, peer.cid()))
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use super::{Instant, OwnedFd, io};

    /// Always `Unsupported` here.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn connect(_cid: u32, _port: u32, _deadline: Instant) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Always `Unsupported` here.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn listen(_port: u32) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Always `Unsupported` here.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn accept(_listener: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
