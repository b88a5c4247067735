//! To be told that something in a directory appeared or went.

#[cfg(target_os = "linux")]
pub use linux::Watcher;
#[cfg(not(target_os = "linux"))]
pub use other::Watcher;

/// A change in a watched directory: which one, and the name in it where the kernel says.
pub type Change = (std::path::PathBuf, Option<std::ffi::OsString>);

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::{Path, PathBuf};

    use nix::errno::Errno;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
    use tokio::io::unix::AsyncFd;

    use super::Change;
    use crate::sys::readiness;

    /// inotify(7) on directories.
    #[derive(Debug)]
    pub struct Watcher {
        inotify: Inotify,
        /// The same inotify instance, in the event loop.
        ready: AsyncFd<OwnedFd>,
        watched: RefCell<HashMap<WatchDescriptor, PathBuf>>,
    }

    impl Watcher {
        /// Watches nothing yet.
        ///
        /// # Errors
        /// The operating system's.
        pub fn new() -> io::Result<Self> {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            let ready = readiness::register(inotify.as_fd().try_clone_to_owned()?)?;
            Ok(Self { inotify, ready, watched: RefCell::default() })
        }

        /// Watches a directory for files that appear, change or go. To ask twice changes nothing.
        ///
        /// # Errors
        /// The operating system's: it is not there, or may not be read.
        pub fn watch_files(&self, dir: &Path) -> io::Result<()> {
            let more =
                AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_CLOSE_WRITE;
            self.add(dir, more)
        }

        /// Watches a directory for names that appear, and for nothing else: it may be a busy one, such as `/tmp`.
        ///
        /// # Errors
        /// As [`watch_files`](Self::watch_files).
        pub fn watch_names(&self, dir: &Path) -> io::Result<()> {
            self.add(dir, AddWatchFlags::empty())
        }

        fn add(&self, dir: &Path, more: AddWatchFlags) -> io::Result<()> {
            // Added to what the directory is watched for already, should it be both.
            let flags = more
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::from_bits_retain(nix::libc::IN_MASK_ADD)
                | AddWatchFlags::IN_ONLYDIR;
            let watch = self.inotify.add_watch(dir, flags)?;
            self.watched.borrow_mut().insert(watch, dir.to_owned());
            Ok(())
        }

        /// The next changes.
        ///
        /// # Errors
        /// The operating system's.
        pub async fn next(&self) -> io::Result<Vec<Change>> {
            loop {
                let mut ready = self.ready.readable().await?;
                match self.inotify.read_events() {
                    Ok(events) => {
                        let mut watched = self.watched.borrow_mut();
                        let mut changes = Vec::new();
                        for event in events {
                            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                                watched.remove(&event.wd);
                            } else if let Some(dir) = watched.get(&event.wd) {
                                changes.push((dir.clone(), event.name));
                            }
                        }
                        return Ok(changes);
                    }
                    Err(Errno::EAGAIN) => ready.clear_ready(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use std::io;
    use std::path::Path;

    use super::Change;

    /// Nothing tells here: commands tell the agent what they changed, and it tries again now and then.
    #[derive(Debug)]
    pub struct Watcher(());

    impl Watcher {
        /// Watches nothing.
        ///
        /// # Errors
        /// None.
        pub fn new() -> io::Result<Self> {
            Ok(Self(()))
        }

        /// Always `Unsupported`.
        ///
        /// # Errors
        /// `Unsupported`.
        pub fn watch_files(&self, _dir: &Path) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// Always `Unsupported`.
        ///
        /// # Errors
        /// `Unsupported`.
        pub fn watch_names(&self, _dir: &Path) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// Never.
        ///
        /// # Errors
        /// None.
        pub async fn next(&self) -> io::Result<Vec<Change>> {
            std::future::pending().await
        }
    }
}
