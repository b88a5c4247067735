//! Our own three descriptors, as an exec sees them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::send;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::write;

/// Bytes that a pipe which can be written takes at once: the kernel calls a pipe writable when it has a page free.
const PIPE_STEP: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A terminal.
    Terminal,
    /// A pipe.
    Pipe,
    /// A socket.
    Socket,
    /// `/dev/null`, or not open.
    Null,
    /// A file, or another device: reading and writing never wait for another process.
    File,
}

/// What `fd` is.
#[must_use]
pub fn kind(fd: BorrowedFd<'_>) -> Kind {
    let Ok(stat) = fstat(fd) else { return Kind::Null };
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFIFO => Kind::Pipe,
        SFlag::S_IFSOCK => Kind::Socket,
        SFlag::S_IFCHR if io::IsTerminal::is_terminal(&fd) => Kind::Terminal,
        SFlag::S_IFCHR if is_null(stat.st_rdev) => Kind::Null,
        _ => Kind::File,
    }
}

fn is_null(device: libc::dev_t) -> bool {
    nix::sys::stat::stat("/dev/null").is_ok_and(|null| null.st_rdev == device)
}

/// Whether two descriptors lead to the same file, pipe or terminal.
#[must_use]
pub fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    match (fstat(a), fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino, a.st_rdev) == (b.st_dev, b.st_ino, b.st_rdev),
        _ => false,
    }
}

/// Where output goes. Writes take what the descriptor takes now, without touching its flags: those belong to whoever
/// shares it with us.
#[derive(Debug)]
pub struct Sink<'fd> {
    fd: BorrowedFd<'fd>,
    kind: Kind,
    /// A pipe, opened once more for us alone so that it can be non-blocking.
    own: Option<Option<File>>,
}

impl<'fd> Sink<'fd> {
    /// Output to `fd`.
    #[must_use]
    pub fn new(fd: BorrowedFd<'fd>) -> Self {
        Self { fd, kind: kind(fd), own: None }
    }

    /// The descriptor, to be polled for writing.
    #[must_use]
    pub const fn fd(&self) -> BorrowedFd<'fd> {
        self.fd
    }

    /// Writes some of `bytes`; `WouldBlock` where nothing goes now.
    ///
    /// # Errors
    /// `WouldBlock`, `BrokenPipe`, and the operating system's.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self.kind {
                Kind::File | Kind::Terminal | Kind::Null => write(self.fd, bytes),
                Kind::Socket => send(self.fd.as_raw_fd(), bytes, crate::sys::SEND),
                Kind::Pipe => self.write_pipe(bytes),
            };
            match written {
                Err(Errno::EINTR) => (),
                written => return Ok(written?),
            }
        }
    }

    fn write_pipe(&mut self, bytes: &[u8]) -> nix::Result<usize> {
        if bytes.len() > PIPE_STEP
            && let Some(own) = self.own.get_or_insert_with(|| reopen(self.fd))
        {
            return write(own.as_fd(), bytes);
        }
        let mut fds = [PollFd::new(self.fd, PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO)? == 0 {
            return Err(Errno::EAGAIN);
        }
        write(self.fd, &bytes[..bytes.len().min(PIPE_STEP)])
    }
}

/// The same pipe through a description of our own. Where that cannot be had, small writes do.
fn reopen(fd: BorrowedFd<'_>) -> Option<File> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_full_pipe_does_not_hold_us_and_its_flags_stay() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = Sink::new(writer.as_fd());
        let bytes = vec![1; 300_000];
        let mut written = 0;
        loop {
            match sink.write(&bytes) {
                Ok(n) => written += n,
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(sink.write(b"x").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let flags = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK, 0);
        let mut read = vec![0; written];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(sink.write(b"x").unwrap(), 1);
        drop(reader);
        assert_eq!(sink.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(sink.write(&bytes).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn descriptors_are_told_apart() {
        let (reader, writer) = io::pipe().unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let null = File::open("/dev/null").unwrap();
        assert_eq!(kind(reader.as_fd()), Kind::Pipe);
        assert_eq!(kind(socket.as_fd()), Kind::Socket);
        assert_eq!(kind(file.as_fd()), Kind::File);
        assert_eq!(kind(null.as_fd()), Kind::Null);
        assert!(same(reader.as_fd(), writer.as_fd()) && !same(reader.as_fd(), file.as_fd()));
    }
}
