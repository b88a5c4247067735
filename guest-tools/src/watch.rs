//! Files that change: the policy and the trusted keys. The directories are watched, because editors and package managers
//! replace files by renaming others over them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time;

use crate::async_fd;

/// How long a burst of changes may settle. One timer, after a change and not while nothing happens.
const SETTLE: Duration = Duration::from_millis(100);

/// Directories and the names in them that count.
#[derive(Debug)]
pub struct Watcher {
    inotify: Inotify,
    /// A second descriptor of the same instance, for its readiness.
    readiness: AsyncFd<OwnedFd>,
    watched: Vec<Watched>,
}

#[derive(Debug)]
struct Watched {
    directory: PathBuf,
    /// Every name counts where there is none.
    name: Option<&'static str>,
    descriptor: Option<WatchDescriptor>,
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let readiness = async_fd::register(inotify.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { inotify, readiness, watched: Vec::new() })
    }

    /// Counts changes of `name`, or of everything, in `directory`. A directory that does not exist is watched from the
    /// moment a change elsewhere shows that it may: watch its parent, too.
    pub fn add(&mut self, directory: &Path, name: Option<&'static str>) {
        self.watched.push(Watched { directory: directory.into(), name, descriptor: None });
        self.arm();
    }

    /// Returns after something that counts has changed, and the burst it came in is over.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn changed(&mut self) -> io::Result<()> {
        while !self.some_count().await? {}
        loop {
            match time::timeout(SETTLE, self.some_count()).await {
                Ok(more) => more?,
                Err(_) => return Ok(()),
            };
        }
    }

    async fn some_count(&mut self) -> io::Result<bool> {
        let read = |_: &OwnedFd| Ok(self.inotify.read_events()?);
        let events = self.readiness.async_io(Interest::READABLE, read).await?;
        let counts = events.iter().any(|event| self.counts(event));
        self.arm();
        Ok(counts)
    }

    fn counts(&mut self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        let gone = event.mask.contains(AddWatchFlags::IN_IGNORED);
        let mut counts = false;
        for watched in self.watched.iter_mut().filter(|watched| watched.descriptor == Some(event.wd)) {
            if gone {
                watched.descriptor = None;
            }
            let named = watched.name.is_none_or(|name| event.name.as_deref() == Some(OsStr::new(name)));
            counts |= gone || named;
        }
        counts
    }

    /// Watches the directories that exist and are not watched. The kernel gives an inode one watch however often it
    /// is asked for it.
    fn arm(&mut self) {
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for watched in self.watched.iter_mut().filter(|watched| watched.descriptor.is_none()) {
            watched.descriptor = self.inotify.add_watch(&watched.directory, mask).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[tokio::test]
    async fn a_file_replaced_by_a_rename_counts_and_its_neighbour_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut watcher = Watcher::new().unwrap();
        watcher.add(directory.path(), Some("tools.toml"));
        fs::write(directory.path().join("other"), "x").unwrap();
        assert!(!watcher.some_count().await.unwrap());
        fs::rename(directory.path().join("other"), directory.path().join("tools.toml")).unwrap();
        watcher.changed().await.unwrap();
    }

    #[tokio::test]
    async fn a_directory_that_comes_later_is_watched_once_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let keys = directory.path().join("trusted-hosts.d");
        let mut watcher = Watcher::new().unwrap();
        watcher.add(directory.path(), Some("trusted-hosts.d"));
        watcher.add(&keys, None);
        fs::create_dir(&keys).unwrap();
        watcher.changed().await.unwrap();
        fs::write(keys.join("a.pub"), "x").unwrap();
        watcher.changed().await.unwrap();
    }
}
