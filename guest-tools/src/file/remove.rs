//! Rm: one entry, or a directory with all that is in it.
//!
//! The tree is walked by descriptors: each directory is opened in its parent's descriptor without following links, so
//! a directory that somebody swaps for a symbolic link is removed as a link and never entered. Nothing recurses, and
//! only the last few directories are kept open: going up to an older one opens `..` and makes sure that it is the
//! directory we came through. Depth costs a name per level.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use hospes_protocol::error::ErrorKind;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, stat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::act::entry;
use super::stat::{is, is_dot};
use super::{FileError, Home};

const ACT: &str = "remove";
/// Directories kept open. Each costs a descriptor and the C library's buffer of 32 KiB.
const OPEN: usize = 16;
/// Subdirectories noted before they are worked on.
const BATCH: usize = 1024;
/// Failures after which the rest is not tried.
const FAILURES: u64 = 1000;

/// Removes an entry; a symbolic link itself, never what it points to. With `recursive` a directory with all that is
/// in it, mounted file systems included, as rm(1) does: what cannot be removed is reported at the end and the rest is
/// gone. With `force` a missing entry is no error. Once `cancelled`, what is left stays.
///
/// # Errors
/// [`FileError`].
pub fn remove(
    home: &Home,
    path: &[u8],
    recursive: bool,
    force: bool,
    cancelled: &AtomicBool,
) -> Result<(), FileError> {
    let full = home.join(path);
    let (parent, name, must_be_directory) = entry(ACT, &full, path)?;
    let failed = |errno| FileError::os(ACT, path)(errno);
    let act = || {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = openat(AT_FDCWD, &parent, flags, Mode::empty())?;
        let found = fstatat(&parent, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok((parent, found))
    };
    let (parent, found) = match act() {
        Err(Errno::ENOENT) if force => return Ok(()),
        result => result.map_err(failed)?,
    };
    if !is(&found, SFlag::S_IFDIR) {
        if must_be_directory {
            return Err(failed(Errno::ENOTDIR));
        }
        return unlinkat(&parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir).map_err(failed);
    }
    if stat("/").is_ok_and(|root| id(&root) == id(&found)) {
        return Err(FileError::Refused {
            act: ACT,
            path: path.to_vec(),
            kind: ErrorKind::FORBIDDEN,
            reason: "it is the root directory",
            hint: "",
        });
    }
    if !recursive {
        // An empty directory is removed as a file is: nothing is lost with it.
        return unlinkat(&parent, name.as_os_str(), UnlinkatFlags::RemoveDir).map_err(failed);
    }
    let name = CString::new(name.as_bytes()).map_err(|_| failed(Errno::EINVAL))?;
    Walk { path, parent, cancelled, stack: Vec::new(), first: None, failures: 0 }.run(name)
}

type Id = (u64, u64);

fn id(found: &FileStat) -> Id {
    (found.st_dev, found.st_ino)
}

/// A directory that is being emptied.
struct Level {
    name: CString,
    id: Id,
    /// Closed while the walk is far below.
    directory: Option<Dir>,
    /// Subdirectories to work on.
    batch: Vec<CString>,
    /// What could not be removed, so that the next look at the directory passes over it.
    failed: HashSet<CString>,
    /// Whether anything was removed since the last look.
    progress: bool,
}

struct Walk<'a> {
    path: &'a [u8],
    /// Where the tree stands.
    parent: OwnedFd,
    cancelled: &'a AtomicBool,
    stack: Vec<Level>,
    first: Option<FileError>,
    failures: u64,
}

impl Walk<'_> {
    fn run(mut self, name: CString) -> Result<(), FileError> {
        self.enter(name)?;
        while let Some(level) = self.stack.last_mut() {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(self.error(None, Errno::ECANCELED));
            }
            if let Some(name) = level.batch.pop() {
                self.enter(name)?;
            } else if !self.look()? {
                self.leave()?;
            }
        }
        match (self.first, self.failures) {
            (None, _) => Ok(()),
            (Some(first), 0 | 1) => Err(first),
            (Some(first), count) => Err(FileError::Several { first: Box::new(first), more: count - 1 }),
        }
    }

    /// Opens a directory inside the current one. What turns out to be none is removed as a file.
    fn enter(&mut self, name: CString) -> Result<(), FileError> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let opened = openat(self.current(), name.as_c_str(), flags, Mode::empty()).and_then(|fd| {
            let id = id(&fstat(&fd)?);
            Ok((id, Dir::from_fd(fd)?))
        });
        match opened {
            Ok((id, directory)) => {
                let directory = Some(directory);
                self.stack.push(Level {
                    name,
                    id,
                    directory,
                    batch: Vec::new(),
                    failed: HashSet::new(),
                    progress: false,
                });
                if let Some(far) = self.stack.len().checked_sub(OPEN + 1) {
                    self.stack[far].directory = None;
                }
                Ok(())
            }
            // It is no directory any more: a link, a file, or gone.
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENOENT) => {
                let result = unlinkat(self.current(), name.as_c_str(), UnlinkatFlags::NoRemoveDir);
                self.removed(name, result)
            }
            // One that may not be read can still be removed if it is empty.
            Err(Errno::EACCES) => {
                let result = unlinkat(self.current(), name.as_c_str(), UnlinkatFlags::RemoveDir);
                self.removed(name, result.map_err(|_| Errno::EACCES))
            }
            Err(errno) => self.removed(name, Err(errno)),
        }
    }

    /// Goes through the current directory: removes files, notes subdirectories. False when nothing is left to do here.
    fn look(&mut self) -> Result<bool, FileError> {
        let (mut failures, mut removed) = (Vec::new(), false);
        // The iterator borrows the stream, so that entries are removed by a descriptor of their own.
        let descriptor = self.current().try_clone_to_owned();
        let descriptor = descriptor.map_err(|_| self.error(None, Errno::EMFILE))?;
        let Some(level) = self.stack.last_mut() else { return Ok(false) };
        let Some(directory) = &mut level.directory else { return Ok(false) };
        for found in directory.iter() {
            let found = match found {
                Ok(found) => found,
                Err(errno) => {
                    failures.push((c"".to_owned(), errno));
                    break;
                }
            };
            let name = found.file_name();
            if is_dot(name) || level.failed.contains(name) {
                continue;
            }
            let result = match found.file_type() {
                Some(Type::Directory) => Err(Errno::EISDIR),
                Some(_) => unlinkat(&descriptor, name, UnlinkatFlags::NoRemoveDir),
                None => unlink_unless_directory(&descriptor, name),
            };
            match result {
                Ok(()) | Err(Errno::ENOENT) => removed = true,
                Err(Errno::EISDIR) => level.batch.push(name.to_owned()),
                Err(errno) => failures.push((name.to_owned(), errno)),
            }
            if level.batch.len() >= BATCH || failures.len() as u64 >= FAILURES {
                break;
            }
        }
        level.progress |= removed;
        let more = !level.batch.is_empty();
        for (name, errno) in failures {
            self.removed(name, Err(errno))?;
        }
        Ok(more)
    }

    /// Removes the current directory, which is empty as far as we saw, from its parent.
    fn leave(&mut self) -> Result<(), FileError> {
        let Some(mut level) = self.stack.pop() else { return Ok(()) };
        if let Some(above) = self.stack.last()
            && above.directory.is_none()
        {
            self.reopen(&level)?;
        }
        match unlinkat(self.current(), level.name.as_c_str(), UnlinkatFlags::RemoveDir) {
            // Removing while reading may pass over entries: as long as that helps, look again.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if level.progress && level.failed.is_empty() => {
                level.progress = false;
                self.stack.push(level);
                Ok(())
            }
            // What is in the way has been reported.
            Err(Errno::ENOTEMPTY | Errno::EEXIST) if !level.failed.is_empty() => {
                if let Some(above) = self.stack.last_mut() {
                    above.failed.insert(level.name);
                }
                Ok(())
            }
            result => self.removed(level.name, result),
        }
    }

    /// Opens the directory above `below` again, by `..`, and makes sure that it is the one we came through.
    fn reopen(&mut self, below: &Level) -> Result<(), FileError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = below.directory.as_ref().ok_or(Errno::ESTALE);
        let opened = directory.and_then(|directory| {
            let fd = openat(directory, c"..", flags, Mode::empty())?;
            let id = id(&fstat(&fd)?);
            Ok((id, Dir::from_fd(fd)?))
        });
        let (found, directory) = opened.map_err(|errno| self.error(None, errno))?;
        match self.stack.last_mut() {
            Some(above) if above.id == found => above.directory = Some(directory),
            // Somebody moved a directory away while we were in it: what is above is none of ours.
            _ => return Err(self.error(None, Errno::ESTALE)),
        }
        Ok(())
    }

    fn current(&self) -> std::os::fd::BorrowedFd<'_> {
        match self.stack.last().and_then(|level| level.directory.as_ref()) {
            Some(directory) => directory.as_fd(),
            None => self.parent.as_fd(),
        }
    }

    /// Notes how the removal of `name` in the current directory went.
    fn removed(&mut self, name: CString, result: Result<(), Errno>) -> Result<(), FileError> {
        match result {
            Ok(()) | Err(Errno::ENOENT) => {
                if let Some(level) = self.stack.last_mut() {
                    level.progress = true;
                }
                return Ok(());
            }
            Err(errno) => {
                let error = self.error(Some(&name), errno);
                self.first.get_or_insert(error);
                self.failures += 1;
            }
        }
        if let Some(level) = self.stack.last_mut() {
            level.failed.insert(name);
        }
        if self.failures < FAILURES {
            return Ok(());
        }
        match self.first.take() {
            Some(first) => Err(FileError::Several { first: Box::new(first), more: self.failures - 1 }),
            None => Ok(()),
        }
    }

    fn error(&self, name: Option<&CStr>, errno: Errno) -> FileError {
        let mut path = self.path.to_vec();
        let below = self.stack.iter().skip(1).map(|level| level.name.as_c_str());
        // The first name of the stack is the path's own last component.
        let inside = name.filter(|name| !name.is_empty() && !self.stack.is_empty());
        for name in below.chain(inside) {
            while path.last() == Some(&b'/') && path.len() > 1 {
                path.pop();
            }
            path.push(b'/');
            path.extend_from_slice(OsStr::from_bytes(name.to_bytes()).as_bytes());
            if path.len() > hospes_protocol::limits::PATH {
                break;
            }
        }
        FileError::Os { act: ACT, path, errno }
    }
}

/// For file systems that do not say what an entry is. `unlinkat` of a directory is `EISDIR` on Linux, and `EPERM` on
/// others and where the entry may not be removed.
fn unlink_unless_directory(directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let found = fstatat(directory.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if is(&found, SFlag::S_IFDIR) {
        return Err(Errno::EISDIR);
    }
    unlinkat(directory.as_fd(), name, UnlinkatFlags::NoRemoveDir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn remove(home: &Home, path: &[u8], recursive: bool, force: bool) -> Result<(), FileError> {
        super::remove(home, path, recursive, force, &AtomicBool::new(false))
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        (dir, home)
    }

    #[test]
    fn one_entry_goes_and_a_full_directory_needs_to_be_asked_for() {
        let (dir, home) = home();
        std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
        symlink("d", dir.path().join("link")).unwrap();
        let refused = remove(&home, b"d", false, false).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::ENOTEMPTY));
        assert_eq!(remove(&home, b"link/", true, false).unwrap_err().errno(), Some(Errno::ENOTDIR));
        remove(&home, b"link", true, false).unwrap();
        assert!(dir.path().join("d/e").exists(), "the link went, what it pointed to stays");
        remove(&home, b"d/e", false, false).unwrap();
        remove(&home, b"d/", true, false).unwrap();
        assert_eq!(remove(&home, b"d", true, false).unwrap_err().errno(), Some(Errno::ENOENT));
        remove(&home, b"d", true, true).unwrap();
    }

    #[test]
    fn the_root_and_dots_are_refused() {
        let (_dir, home) = home();
        for path in [&b"/"[..], b"//", b"/..", b".", b"..", b"x/."] {
            assert!(matches!(remove(&home, path, true, true), Err(FileError::Refused { .. })), "{path:?}");
        }
    }

    #[test]
    fn links_in_the_tree_are_removed_and_not_followed() {
        let (dir, home) = home();
        std::fs::create_dir_all(dir.path().join("keep/sub")).unwrap();
        std::fs::write(dir.path().join("keep/file"), b"x").unwrap();
        std::fs::create_dir_all(dir.path().join("d/e/f")).unwrap();
        symlink("../../keep", dir.path().join("d/e/link")).unwrap();
        symlink("nowhere", dir.path().join("d/dangling")).unwrap();
        remove(&home, b"d", true, false).unwrap();
        assert!(!dir.path().join("d").exists());
        assert!(dir.path().join("keep/file").exists() && dir.path().join("keep/sub").exists());
    }

    #[test]
    fn a_tree_deeper_than_any_path_or_descriptor_limit_goes() {
        let (dir, home) = home();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        let mut at = openat(AT_FDCWD, &dir.path().join("deep"), OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        for depth in 0..6000 {
            nix::sys::stat::mkdirat(&at, "sub", Mode::S_IRWXU).unwrap();
            if depth % 100 == 0 {
                openat(&at, "file", OFlag::O_CREAT | OFlag::O_WRONLY, Mode::S_IRWXU).unwrap();
                nix::sys::stat::mkdirat(&at, "other", Mode::S_IRWXU).unwrap();
            }
            at = openat(&at, "sub", OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
        remove(&home, b"deep", true, false).unwrap();
        assert!(!dir.path().join("deep").exists());
    }

    #[test]
    fn a_cancelled_removal_stops() {
        let (dir, home) = home();
        std::fs::create_dir_all(dir.path().join("t/a/b")).unwrap();
        let error = super::remove(&home, b"t", true, false, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ECANCELED));
        assert!(dir.path().join("t/a/b").exists());
    }

    #[test]
    fn a_wide_directory_goes() {
        let (dir, home) = home();
        for n in 0..BATCH + 3 {
            std::fs::create_dir_all(dir.path().join(format!("wide/d{n}/x"))).unwrap();
            std::fs::write(dir.path().join(format!("wide/f{n}")), []).unwrap();
        }
        remove(&home, b"wide", true, false).unwrap();
        assert!(!dir.path().join("wide").exists());
    }

    /// Somebody swaps a directory of the tree for a link to a tree of value, again and again: it is never entered.
    #[test]
    fn a_directory_swapped_for_a_link_is_not_entered() {
        let (dir, home) = home();
        let keep = dir.path().join("keep");
        std::fs::create_dir_all(&keep).unwrap();
        for n in 0..20 {
            std::fs::write(keep.join(format!("{n}")), b"x").unwrap();
        }
        for _ in 0..200 {
            let (victim, aside) = (dir.path().join("t/v"), dir.path().join("aside"));
            std::fs::create_dir_all(victim.join("in")).unwrap();
            std::fs::create_dir_all(dir.path().join("t/w/x/y/z")).unwrap();
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        if std::fs::rename(&victim, &aside).is_ok() {
                            drop(symlink(&keep, &victim));
                            drop(std::fs::remove_file(&victim));
                            drop(std::fs::rename(&aside, &victim));
                        }
                    }
                });
                // It may fail, as the tree changes under it; what matters is what it leaves alone.
                drop(remove(&home, b"t", true, true));
                stop.store(true, Ordering::Relaxed);
            });
            drop(std::fs::remove_dir_all(&aside));
            drop(std::fs::remove_dir_all(dir.path().join("t")));
        }
        assert_eq!(std::fs::read_dir(&keep).unwrap().count(), 20);
    }

    #[test]
    fn what_cannot_be_removed_is_named_and_the_rest_is_gone() {
        if nix::unistd::geteuid().is_root() {
            // Root may remove everything but a mount point or an immutable file; the lab's test covers this as a user.
            return;
        }
        use std::os::unix::fs::PermissionsExt;
        let (dir, home) = home();
        std::fs::create_dir_all(dir.path().join("t/locked/in")).unwrap();
        std::fs::create_dir_all(dir.path().join("t/open/in")).unwrap();
        let locked = dir.path().join("t/locked");
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o500)).unwrap();
        let error = remove(&home, b"t", true, false).unwrap_err();
        assert_eq!(error.to_string(), "Could not remove \"t/locked/in\": Permission denied");
        assert!(!dir.path().join("t/open").exists());
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
}
