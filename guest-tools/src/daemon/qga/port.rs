//! A port of virtio-serial. While nobody holds its other end it reads as ended and polls as hung up, for as long as that
//! lasts: whoever waits for readiness in the usual way spins. So it is watched for changes alone (`epoll(7)`,
//! `EPOLLET`), by an epoll of its own.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::async_fd;

/// An open port.
#[derive(Debug)]
pub(super) struct Port {
    port: OwnedFd,
    changes: Epoll,
    /// The same epoll, in the event loop.
    ready: AsyncFd<OwnedFd>,
}

impl Port {
    /// Opens it. Nobody else may have it open: the kernel gives it to one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Self::of(file.into())
    }

    fn of(port: OwnedFd) -> io::Result<Self> {
        let changes = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        changes.add(&port, EpollEvent::new(flags, 0))?;
        let ready = async_fd::register(changes.0.try_clone()?, Interest::READABLE)?;
        Ok(Self { port, changes, ready })
    }

    /// Reads what comes next, at least one byte, however long nobody is there.
    pub(super) async fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::read(&self.port, bytes) {
                Ok(0) | Err(Errno::EAGAIN) => self.changed().await?,
                Ok(read) => return Ok(read),
                Err(Errno::EINTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes all of it, however long nobody reads it.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match nix::unistd::write(&self.port, bytes) {
                Ok(0) | Err(Errno::EAGAIN) => self.changed().await?,
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(Errno::EINTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits for the port's next change of any kind.
    async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            let mut events = [EpollEvent::empty()];
            match self.changes.wait(&mut events, EpollTimeout::ZERO) {
                Ok(0) => ready.clear_ready(),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_comes_is_read_and_an_end_that_lasts_is_waited_out() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let port = Port::of(ours.into()).unwrap();
        let mut bytes = [0; 16];
        assert!(timeout(Duration::from_millis(20), port.read(&mut bytes)).await.is_err());
        theirs.write_all(b"hello").unwrap();
        assert_eq!(port.read(&mut bytes).await.unwrap(), 5);
        drop(theirs);
        // It reads as ended from now on. Where that made it spin, the deadline would never come.
        assert!(timeout(Duration::from_millis(20), port.read(&mut bytes)).await.is_err());
    }
}
