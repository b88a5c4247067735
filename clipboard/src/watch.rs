//! Tells when a file appears in one of some directories.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::readiness::register;

/// Directories under watch.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    /// A second descriptor of the same instance, for its readiness.
    readiness: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches those of the directories that there are.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new<'p>(directories: impl IntoIterator<Item = &'p Path>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let readiness = register(inotify.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        for directory in directories {
            let appears = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
            let _ = inotify.add_watch(directory, appears);
        }
        Ok(Self { inotify, readiness })
    }

    /// Returns once something has appeared whose name begins with one of `prefixes`.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn appeared(&self, prefixes: &[&str]) -> io::Result<()> {
        loop {
            let events = self
                .readiness
                .async_io(Interest::READABLE, |_| match self.inotify.read_events() {
                    Ok(events) => Ok(events),
                    Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
                    Err(error) => Err(error.into()),
                })
                .await?;
            let names = events.iter().filter_map(|event| event.name.as_ref()?.to_str());
            let mut fitting = names.filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
            if fitting.next().is_some() {
                return Ok(());
            }
        }
    }
}
