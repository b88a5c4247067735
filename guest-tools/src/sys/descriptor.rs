//! A descriptor that never blocks, registered with the runtime.
//!
//! Reads and writes go straight to the kernel while it is known to be ready, and a short count is taken for what it is
//! on streams: nothing more for now. That saves the second call that would only say so.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{self, MsgFlags};
use nix::unistd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::async_fd::register;

/// A registered descriptor. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Descriptor {
    fd: AsyncFd<OwnedFd>,
    /// Whether the first write is still to come: a fresh socket has room, before anybody has said so.
    fresh: Cell<bool>,
}

/// What a call that may not block has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    NotReady,
}

impl Descriptor {
    /// Registers our end of a pipe or a terminal, and makes it non-blocking.
    pub(crate) fn stream(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { fd: register(fd, interest)?, fresh: Cell::new(false) })
    }

    /// Registers a socket. Its own flags stay as they are: every call on it says that it must not block.
    pub(crate) fn socket(fd: OwnedFd) -> io::Result<Self> {
        let fd = register(fd, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { fd, fresh: Cell::new(true) })
    }

    /// Gives the descriptor back, no longer registered.
    pub(crate) fn into_inner(self) -> OwnedFd {
        self.fd.into_inner()
    }

    /// Waits until there is something to read, or the end.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.fd.readable().await?.retain_ready();
        Ok(())
    }

    /// Waits until something may be written.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.fd.writable().await?.retain_ready();
        Ok(())
    }

    /// Reads from a pipe or a terminal. `Bytes(0)` is its end.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        let len = buffer.len();
        self.attempt(Interest::READABLE, len, |fd| unistd::read(fd, buffer))
    }

    /// As [`read`](Self::read), and asks the kernel even where it has said nothing yet.
    pub(crate) fn read_anyway(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        anyway(|| unistd::read(self, buffer))
    }

    /// Writes to a pipe or a terminal.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<Moved> {
        self.attempt(Interest::WRITABLE, bytes.len(), |fd| unistd::write(fd, bytes))
    }

    /// Reads from a socket. `Bytes(0)` is its end.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        let len = buffer.len();
        self.attempt(Interest::READABLE, len, |fd| {
            socket::recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)
        })
    }

    /// Writes to a socket.
    pub(crate) fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<Moved> {
        let len = parts.iter().map(|part| part.len()).sum();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let send = |fd: BorrowedFd<'_>| socket::sendmsg::<()>(fd.as_raw_fd(), parts, &[], flags, None);
        if self.fresh.replace(false) {
            return anyway(|| send(self.as_fd()));
        }
        self.attempt(Interest::WRITABLE, len, send)
    }

    fn attempt(
        &self,
        interest: Interest,
        len: usize,
        mut call: impl FnMut(BorrowedFd<'_>) -> nix::Result<usize>,
    ) -> io::Result<Moved> {
        let mut short = None;
        let done = self.fd.try_io(interest, |fd| {
            loop {
                match call(fd.as_fd()) {
                    Err(Errno::EINTR) => {}
                    Ok(n) if n > 0 && n < len => {
                        // The stream is drained, or full: the next readiness will be news.
                        short = Some(n);
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    done => return Ok(done?),
                }
            }
        });
        match (short, done) {
            (Some(n), _) | (None, Ok(n)) => Ok(Moved::Bytes(n)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(Moved::NotReady),
            (None, Err(error)) => Err(error),
        }
    }
}

/// Calls the kernel whatever the runtime knows.
fn anyway(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<Moved> {
    loop {
        match call() {
            Ok(n) => return Ok(Moved::Bytes(n)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Moved::NotReady),
            Err(error) => return Err(error.into()),
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}
