//! This machine's end of a carried connection.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hospes_protocol::forward::Address;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt};
use std::os::unix::ffi::OsStrExt;

use crate::stdio::{Kind, Sink, kind};
use crate::sys::SEND;

/// One end of a carried connection: two directions that end by themselves.
pub trait Local {
    /// To be polled for reading.
    fn input(&self) -> BorrowedFd<'_>;
    /// To be polled for writing.
    fn output(&self) -> BorrowedFd<'_>;
    /// Reads once `input` is ready; zero is the end.
    ///
    /// # Errors
    /// `WouldBlock`, and what broke it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes what goes now.
    ///
    /// # Errors
    /// `WouldBlock`, and what broke it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Says that nothing more is written.
    fn shut_writing(&mut self);
    /// Says that nothing more is read.
    fn shut_reading(&mut self);
    /// Whether a write's error only says that nobody reads, and the other direction may go on.
    fn only_unread(&self, error: &io::Error) -> bool;
    /// Makes the close that follows a reset, where there is such a thing.
    fn reset(&mut self);
}

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    tcp: bool,
}

impl Socket {
    /// Calls an address of this machine's network.
    ///
    /// # Errors
    /// The operating system's.
    pub fn connect(to: &Address) -> io::Result<Self> {
        match to {
            Address::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).map(Self::from),
            Address::Unix { path } => UnixStream::connect(std::ffi::OsStr::from_bytes(path)).map(Self::from),
        }
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        // Whoever types or asks in small pieces should not wait for the next piece. Without it, it works all the same.
        let _ = stream.set_nodelay(true);
        Self { fd: stream.into(), tcp: true }
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self { fd: stream.into(), tcp: false }
    }
}

impl Local for Socket {
    fn input(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn output(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(send(self.fd.as_raw_fd(), bytes, SEND)?)
    }

    fn shut_writing(&mut self) {
        // One that broke meanwhile is found out by the next read.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
    }

    fn shut_reading(&mut self) {
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Read);
    }

    fn only_unread(&self, error: &io::Error) -> bool {
        !self.tcp && error.raw_os_error() == Some(Errno::EPIPE as i32)
    }

    fn reset(&mut self) {
        if self.tcp {
            let now = libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(&self.fd, sockopt::Linger, &now);
        }
    }
}

/// Our own stdin and stdout as one end.
#[derive(Debug)]
pub struct Stdio<'fd> {
    stdin: BorrowedFd<'fd>,
    stdout: BorrowedFd<'fd>,
    sink: Sink<'fd>,
}

impl<'fd> Stdio<'fd> {
    /// These two.
    #[must_use]
    pub fn new(stdin: BorrowedFd<'fd>, stdout: BorrowedFd<'fd>) -> Self {
        Self { stdin, stdout, sink: Sink::new(stdout) }
    }
}

impl Local for Stdio<'_> {
    fn input(&self) -> BorrowedFd<'_> {
        self.stdin
    }

    fn output(&self) -> BorrowedFd<'_> {
        self.stdout
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match nix::unistd::read(self.stdin, buffer) {
            // A terminal that is gone, or that belongs to another job.
            Err(Errno::EIO) => Ok(0),
            result => Ok(result?),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sink.write(bytes)
    }

    /// Whoever reads our stdout learns of the end now, and may still write to our stdin: ssh needs that.
    fn shut_writing(&mut self) {
        if kind(self.stdout) == Kind::Socket {
            let _ = shutdown(self.stdout.as_raw_fd(), Shutdown::Write);
        } else if self.stdout.as_raw_fd() == libc::STDOUT_FILENO
            && let Ok(null) = std::fs::File::options().write(true).open("/dev/null")
        {
            self.sink = Sink::new(self.stdout);
            let _ = nix::unistd::dup2_stdout(null);
        }
    }

    /// Nothing to say: what is not read stays where it is.
    fn shut_reading(&mut self) {}

    fn only_unread(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::BrokenPipe
    }

    fn reset(&mut self) {}
}
