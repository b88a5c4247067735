//! The guest's own socket of a carried connection.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use std::os::fd::AsRawFd;

use crate::sys::descriptor::{Descriptor, Moved};

/// A connected stream socket, of TCP or Unix.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: Descriptor,
    tcp: bool,
}

impl Socket {
    pub(super) fn tcp(fd: OwnedFd) -> io::Result<Self> {
        // Whoever types or asks in small pieces should not wait for the next piece.
        setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
        Ok(Self { descriptor: Descriptor::socket(fd)?, tcp: true })
    }

    pub(super) fn unix(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { descriptor: Descriptor::socket(fd)?, tcp: false })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.descriptor.readable().await
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        self.descriptor.writable().await
    }

    /// Reads; `Bytes(0)` is the end.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        self.descriptor.receive(buffer)
    }

    /// Writes what goes now.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.descriptor.send(&[IoSlice::new(bytes)])? {
            Moved::Bytes(len) => Ok(len),
            Moved::NotReady => Ok(0),
        }
    }

    /// Says that nothing more is written. A socket that broke meanwhile is found out by the next read.
    pub(super) fn shut(&self, how: Shutdown) {
        let _ = shutdown(self.descriptor.as_fd().as_raw_fd(), how);
    }

    /// Whether a write's error only says that nobody reads, so that the other direction may go on. A TCP peer that
    /// reads no more has reset the whole connection; a Unix one may have shut one direction.
    pub(super) fn only_unread(&self, error: &io::Error) -> bool {
        !self.tcp && error.raw_os_error() == Some(Errno::EPIPE as i32)
    }

    /// Closes it so that its peer sees a reset and not an end. Unix sockets have no such thing: they end.
    pub(super) fn reset(self) {
        if self.tcp {
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            // Without it, the close is an ordinary one.
            let _ = setsockopt(&self.descriptor.as_fd(), sockopt::Linger, &now);
        }
    }
}
