//! Symbolic links, hard links and FIFOs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hospes_protocol::copy::archive::Attributes;
use hospes_protocol::error::{ErrorKind, WireError};
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, UTIME_OMIT, linkat, openat, symlinkat, utimensat};
use rustix::io::Errno;

use super::{Writer, place};
use crate::directory::DIRECTORY;
use crate::fault::system;

/// The time of modification, and the time of access left alone.
pub(super) const fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "tv_nsec's type differs by platform")]
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ },
    }
}

impl Writer {
    pub(super) fn symlink(
        &self,
        dir: &Arc<OwnedFd>,
        name: &[u8],
        attributes: &Attributes<'_>,
        target: &[u8],
    ) -> Result<(), WireError> {
        let time = (attributes.seconds, attributes.nanoseconds);
        place::make(dir.as_fd(), name, |name| {
            symlinkat(target, dir, name)?;
            // A file system without times on symbolic links is no failure.
            let _ = utimensat(dir, name, &times(time), AtFlags::SYMLINK_NOFOLLOW);
            Ok(())
        })
        .map_err(|errno| place::refusal("Cannot make the symbolic link", errno))
    }

    pub(super) fn fifo(
        &self,
        dir: &Arc<OwnedFd>,
        name: &[u8],
        attributes: &Attributes<'_>,
    ) -> Result<(), WireError> {
        let mode = Mode::from_raw_mode(self.mode(attributes));
        place::make(dir.as_fd(), name, |name| {
            make_fifo(dir.as_fd(), name, mode)?;
            let time = (attributes.seconds, attributes.nanoseconds);
            let _ = utimensat(dir, name, &times(time), AtFlags::SYMLINK_NOFOLLOW);
            Ok(())
        })
        .map_err(|errno| place::refusal("Cannot make the FIFO", errno))
    }

    pub(super) fn hard_link(&self, dir: &Arc<OwnedFd>, name: &[u8], to: u64) -> Result<(), WireError> {
        let first = usize::try_from(to).ok().and_then(|to| self.links.get(to)).and_then(Option::as_deref);
        let first = first.ok_or_else(|| {
            WireError::new(ErrorKind::NOT_FOUND, "The file of which this is another name is not in place")
        })?;
        let (parent, first) = self.find(first)?;
        place::make(dir.as_fd(), name, |name| linkat(&parent, first, dir, name, AtFlags::empty()))
            .map_err(|errno| place::refusal("Cannot make the hard link", errno))
    }

    /// The directory of a path below the target, and the path's last name: step by step, no link followed.
    fn find<'p>(&self, path: &'p [u8]) -> Result<(Arc<OwnedFd>, &'p [u8]), WireError> {
        let lost = |errno| system("Cannot find the file of which this is another name", errno);
        let mut at =
            self.root.as_ref().map(|root| Arc::clone(&root.dir)).ok_or_else(|| lost(Errno::NOENT))?;
        let mut names = path.split(|byte| *byte == b'/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return Ok((at, name));
            }
            at = openat(&at, name, DIRECTORY, Mode::empty()).map_err(lost)?.into();
        }
        Err(lost(Errno::NOENT))
    }
}

#[cfg(not(target_os = "macos"))]
fn make_fifo(dir: BorrowedFd<'_>, name: &[u8], mode: Mode) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, rustix::fs::FileType::Fifo, mode, 0)
}

/// macOS has no `mkfifoat` before version 13.
#[cfg(target_os = "macos")]
const fn make_fifo(_: BorrowedFd<'_>, _: &[u8], _: Mode) -> Result<(), Errno> {
    Err(Errno::NOTSUP)
}
