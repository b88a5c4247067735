//! Counting what a copy will read, on a thread of its own, while the copy is already under way.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, open, openat, statat};

use super::{Source, identity, size_of};
use crate::directory::{DIRECTORY, Stack};
use crate::exclude::Exclude;

/// Bytes that a file stores: holes not included.
#[allow(clippy::cast_sign_loss, reason = "blkcnt_t, never negative")]
pub(super) fn stored(stat: &Stat) -> u64 {
    size_of(stat).min((stat.st_blocks as u64).saturating_mul(512))
}

/// A count under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Counting {
    result: mpsc::Receiver<(u64, u64)>,
    stop: Arc<AtomicBool>,
}

impl Counting {
    pub(super) fn start(sources: Vec<Source>, exclude: Exclude) -> Self {
        let (done, result) = mpsc::sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let mut walk = Walk { exclude, stop: Arc::clone(&stop), ..Walk::default() };
        // Without a thread there is no count, and the copy goes on without.
        let _ =
            std::thread::Builder::new().name("copy-count".into()).stack_size(256 * 1024).spawn(move || {
                if sources.iter().all(|source| walk.source(source)) {
                    let _ = done.send((walk.entries, walk.bytes));
                }
            });
        Self { result, stop }
    }

    /// Entries and bytes, once, when they are known.
    pub(super) fn result(&mut self) -> Option<(u64, u64)> {
        self.result.try_recv().ok()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Walk {
    exclude: Exclude,
    stop: Arc<AtomicBool>,
    entries: u64,
    bytes: u64,
    seen: HashSet<(u64, u64)>,
    path: Vec<u8>,
}

impl Walk {
    /// False where somebody asked to stop.
    fn source(&mut self, source: &Source) -> bool {
        self.path = source.name().to_vec();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(fd) = open(source.path(), flags, Mode::empty()) else {
            if let Ok(stat) = rustix::fs::stat(source.path()) {
                self.add(&stat);
            }
            return true;
        };
        let mut stack = Stack::new();
        let directories = self.list(&fd);
        if stack.push(fd, (directories, 0)).is_err() {
            return false;
        }
        while let Some((fd, (directories, path_len))) = stack.top() {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let Some(name): Option<CString> = directories.pop() else {
                self.path.truncate(*path_len);
                if stack.pop().is_err() {
                    return false;
                }
                continue;
            };
            let Ok(fd) = openat(fd, &name, DIRECTORY, Mode::empty()) else { continue };
            let path_len = self.path.len();
            self.push_name(name.to_bytes());
            let directories = self.list(&fd);
            if stack.push(fd, (directories, path_len)).is_err() {
                return false;
            }
        }
        true
    }

    fn list(&mut self, fd: &OwnedFd) -> Vec<CString> {
        self.entries += 1;
        let mut directories = Vec::new();
        let Ok(dir) = Dir::read_from(fd) else { return directories };
        for entry in dir.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path_len = self.path.len();
            self.push_name(name.to_bytes());
            let excluded = self.exclude.matches(&self.path, entry.file_type().is_dir());
            self.path.truncate(path_len);
            if excluded {
                continue;
            }
            match entry.file_type() {
                FileType::Directory => directories.push(name.to_owned()),
                FileType::RegularFile | FileType::Unknown => {
                    if let Ok(stat) = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                        self.add(&stat);
                    }
                }
                _ => self.entries += 1,
            }
        }
        directories
    }

    fn add(&mut self, stat: &Stat) {
        self.entries += 1;
        if stat.st_nlink <= 1 || self.seen.insert(identity(stat)) {
            self.bytes += stored(stat);
        }
    }

    fn push_name(&mut self, name: &[u8]) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
    }
}
