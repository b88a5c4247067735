//! Directories inside each other, as open descriptors: the way down and back up that no rename or link can bend.
//!
//! Only the deepest few are open, so that a tree deeper than the descriptor limit can be walked. One that was closed is
//! opened again as its child's `..`, and has to be the same directory.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hospes_protocol::error::{ErrorKind, WireError};
use rustix::fs::{Mode, OFlags, fstat, openat};

use crate::fault::system;

/// Directories that stay open at once.
const OPEN: usize = 48;

/// How a directory below another is opened.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The way from the top to the directory at hand.
#[derive(Debug)]
pub(crate) struct Stack<T> {
    levels: Vec<Level<T>>,
}

#[derive(Debug)]
struct Level<T> {
    place: Place,
    of: T,
}

#[derive(Debug)]
enum Place {
    Open(Arc<OwnedFd>),
    /// Device and inode of one that was closed.
    Closed(u64, u64),
}

impl<T> Stack<T> {
    pub(crate) const fn new() -> Self {
        Self { levels: Vec::new() }
    }

    pub(crate) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The directory at hand and what is known of it.
    pub(crate) fn top(&mut self) -> Option<(&Arc<OwnedFd>, &mut T)> {
        let level = self.levels.last_mut()?;
        match &level.place {
            Place::Open(fd) => Some((fd, &mut level.of)),
            Place::Closed(..) => None,
        }
    }

    /// Goes down into a directory.
    ///
    /// # Errors
    /// The system's, of the one `fstat` that a very deep tree needs.
    pub(crate) fn push(&mut self, fd: impl Into<Arc<OwnedFd>>, of: T) -> Result<(), WireError> {
        self.levels.push(Level { place: Place::Open(fd.into()), of });
        if let Some(at) = self.levels.len().checked_sub(OPEN + 1)
            && let Place::Open(fd) = &self.levels[at].place
        {
            let stat = fstat(fd).map_err(|errno| system("Cannot look at a directory", errno))?;
            #[allow(clippy::useless_conversion, clippy::cast_sign_loss, reason = "dev_t differs by platform")]
            let place = Place::Closed(stat.st_dev as u64, stat.st_ino.into());
            self.levels[at].place = place;
        }
        Ok(())
    }

    /// Goes back up; gives the directory left, still open, and what was known of it.
    ///
    /// # Errors
    /// `ESCAPES` where the directory above is no longer the one we came from.
    pub(crate) fn pop(&mut self) -> Result<Option<(Arc<OwnedFd>, T)>, WireError> {
        let Some(Level { place: Place::Open(fd), of }) = self.levels.pop() else { return Ok(None) };
        if let Some(above) = self.levels.last_mut()
            && let Place::Closed(dev, ino) = above.place
        {
            let up = openat(&fd, c"..", DIRECTORY, Mode::empty())
                .map_err(|errno| system("Cannot go back to the directory above", errno))?;
            let stat = fstat(&up).map_err(|errno| system("Cannot look at a directory", errno))?;
            #[allow(clippy::useless_conversion, clippy::cast_sign_loss, reason = "dev_t differs by platform")]
            let same = (stat.st_dev as u64, u64::from(stat.st_ino)) == (dev, ino);
            if !same {
                return Err(WireError::new(
                    ErrorKind::ESCAPES,
                    "Somebody moved a directory while it was being copied",
                ));
            }
            above.place = Place::Open(up.into());
        }
        Ok(Some((fd, of)))
    }
}
