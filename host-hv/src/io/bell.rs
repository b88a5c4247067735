//! A bell: a descriptor by which one thread, or the kernel, wakes another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// A bell. Rung many times before anybody listens, it has rung once.
#[derive(Debug)]
pub struct Bell(sys::Bell);

impl Bell {
    /// A bell that has not rung.
    ///
    /// # Errors
    /// This process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        sys::Bell::new().map(Self)
    }

    /// Rings it.
    pub fn ring(&self) {
        self.0.ring();
    }

    /// To be called by whoever woke, before looking at what it rang for.
    pub fn heard(&self) {
        self.0.heard();
    }
}

impl AsFd for Bell {
    /// Readable once it has rung; to be waited for by edges.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(target_os = "linux")]
mod sys {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    use nix::sys::eventfd::{EfdFlags, EventFd};

    #[derive(Debug)]
    pub(super) struct Bell(EventFd);

    impl Bell {
        pub(super) fn new() -> io::Result<Self> {
            Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
        }

        pub(super) fn ring(&self) {
            // It fails where the counter is full, and then it has rung.
            let _ = self.0.write(1);
        }

        /// Every write is an edge, whether the counter was read or not.
        #[expect(clippy::unused_self, reason = "as elsewhere")]
        pub(super) fn heard(&self) {}

        pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    #[derive(Debug)]
    pub(super) struct Bell {
        rope: UnixStream,
        bell: UnixStream,
    }

    impl Bell {
        pub(super) fn new() -> io::Result<Self> {
            let (rope, bell) = UnixStream::pair()?;
            rope.set_nonblocking(true)?;
            bell.set_nonblocking(true)?;
            Ok(Self { rope, bell })
        }

        pub(super) fn ring(&self) {
            // It fails where the buffer is full, and then it has rung.
            let _ = (&self.rope).write(&[1]);
        }

        pub(super) fn heard(&self) {
            while matches!((&self.bell).read(&mut [0; 256]), Ok(1..)) {}
        }

        pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
            self.bell.as_fd()
        }
    }
}
