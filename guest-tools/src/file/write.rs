//! Write: a file's new bytes, all or nothing.
//!
//! The bytes go to a file without a name in the same directory (`O_TMPFILE`), which gets its name when the last byte
//! has arrived: cut short, nothing is left behind, whoever is killed. File systems without such files get a
//! `.hospes-` name instead, removed when the write is given up. What was there keeps its mode and, where that is
//! allowed, its owner; other hard links to it keep the old bytes.
//!
//! An append and a device cannot be replaced and are written in place as bytes arrive. A symbolic link is followed, so that it is still a link afterwards.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hospes_protocol::error::ErrorKind;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fdatasync, linkat, unlinkat};

use super::act::{entry, random_name};
use super::read::no_file;
use super::stat::is;
use super::{FileError, Home};

const ACT: &str = "write";
/// Links followed before it is a loop, as in the kernel.
const LINKS: usize = 40;

/// How a file is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// Behind what is there, in place.
    pub append: bool,
    /// Replace what is there; else that is an error.
    pub replace: bool,
    /// The file's permission bits afterwards; without, the old file's, or 0666 less the umask.
    pub mode: Option<u32>,
}

/// A write under way. Dropped before [`commit`](Self::commit) it never was (but for what an append has appended).
pub struct Writer {
    path: Vec<u8>,
    file: OwnedFd,
    place: Place,
    mode: Option<Mode>,
    count: u64,
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is never moved about")]
enum Place {
    /// The bytes go straight to the target.
    InPlace,
    /// They go to a file that takes the target's name at the end.
    Replace { target: Target, temporary: Option<Temporary>, replace: bool },
}

/// Where the file will stand.
struct Target {
    directory: OwnedFd,
    name: OsString,
    old: Option<FileStat>,
}

/// A temporary file that has a name; removed unless it is renamed.
struct Temporary {
    directory: OwnedFd,
    name: OsString,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = unlinkat(&self.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
    }
}

impl Writer {
    /// Opens a write.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn create(home: &Home, path: &[u8], options: WriteOptions) -> Result<Self, FileError> {
        let failed = |errno| FileError::os(ACT, path)(errno);
        let full = home.join(path);
        let mode = options.mode.map(Mode::from_bits_truncate);
        let writer = |file, place| Self { path: path.to_vec(), file, place, mode, count: 0 };
        if options.append {
            let file = append(&full, options, mode).map_err(failed)?;
            return plain(&file, path).map(|()| writer(file, Place::InPlace));
        }
        let target = find(&full, path)?;
        match &target.old {
            Some(_) if !options.replace => return Err(failed(Errno::EEXIST)),
            Some(old) if is(old, SFlag::S_IFDIR) => return Err(failed(Errno::EISDIR)),
            Some(old) if is(old, SFlag::S_IFIFO) || is(old, SFlag::S_IFSOCK) => {
                return Err(no_file(ACT, path));
            }
            Some(old) if !is(old, SFlag::S_IFREG) => {
                let flags = OFlag::O_WRONLY | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(&target.directory, target.name.as_os_str(), flags, Mode::empty())
                    .map_err(failed)?;
                return Ok(writer(file, Place::InPlace));
            }
            _ => (),
        }
        let (file, temporary) =
            unnamed(&target).map_err(|errno| in_the_way(errno, path, target.old.is_some()))?;
        let replace = options.replace;
        Ok(writer(file, Place::Replace { target, temporary, replace }))
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// [`FileError::Os`]; the write is to be dropped.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), FileError> {
        while !bytes.is_empty() {
            match nix::unistd::write(&self.file, bytes) {
                Ok(len) => {
                    self.count += len as u64;
                    bytes = &bytes[len..];
                }
                Err(Errno::EINTR) => (),
                Err(errno) => return Err(FileError::os(ACT, &self.path)(errno)),
            }
        }
        Ok(())
    }

    /// Puts the file where it belongs: how many bytes were written.
    ///
    /// # Errors
    /// [`FileError`]; nothing has changed.
    pub fn commit(self) -> Result<u64, FileError> {
        let Self { path, file, place, mode, count } = self;
        match place {
            Place::InPlace => Ok(()),
            Place::Replace { target, temporary, replace } => settle(&file, &target, temporary, replace, mode),
        }
        .map_err(FileError::os(ACT, &path))?;
        Ok(count)
    }
}

fn append(full: &Path, options: WriteOptions, mode: Option<Mode>) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let usual = Mode::from_bits_truncate(0o666);
    let created = openat(AT_FDCWD, full, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode.unwrap_or(usual));
    let file = match created {
        Err(Errno::EEXIST) if options.replace => openat(AT_FDCWD, full, flags | OFlag::O_CREAT, usual)?,
        // It cannot be created here, but may exist all the same (in /proc and /sys).
        Err(Errno::EACCES | Errno::EPERM | Errno::EROFS) if options.replace => {
            openat(AT_FDCWD, full, flags, Mode::empty())?
        }
        created => {
            let file = created?;
            if let Some(mode) = mode {
                fchmod(&file, mode)?;
            }
            file
        }
    };
    Ok(file)
}

/// An append opens without waiting, so that a pipe is refused here and does not hang.
fn plain(file: &OwnedFd, path: &[u8]) -> Result<(), FileError> {
    let found = fstat(file).map_err(FileError::os(ACT, path))?;
    if is(&found, SFlag::S_IFIFO) || is(&found, SFlag::S_IFSOCK) {
        return Err(no_file(ACT, path));
    }
    Ok(())
}

/// Follows links to where the file stands or will stand.
fn find(full: &Path, path: &[u8]) -> Result<Target, FileError> {
    let failed = |errno| FileError::os(ACT, path)(errno);
    let mut base: Option<OwnedFd> = None;
    let mut at: PathBuf = full.to_owned();
    let mut kernels: Option<FileStat> = None;
    for _ in 0..LINKS {
        let (parent, name, must_be_directory) = entry(ACT, &at, path)?;
        if must_be_directory {
            return Err(failed(Errno::EISDIR));
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match &base {
            Some(base) => openat(base, &parent, flags, Mode::empty()),
            None => openat(AT_FDCWD, &parent, flags, Mode::empty()),
        }
        .map_err(failed)?;
        let old = match fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        match &old {
            Some(found) if is(found, SFlag::S_IFLNK) => {
                if kernels.is_none() {
                    // The kernel refuses some links in shared directories (protected_symlinks) and all that lead
                    // nowhere; what it would open is what we must end up at.
                    let opened = openat(AT_FDCWD, full, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
                    kernels = Some(opened.and_then(fstat).map_err(failed)?);
                }
                at = readlinkat(&directory, name.as_os_str()).map_err(failed)?.into();
                base = Some(directory);
            }
            _ => {
                let same = |found: &FileStat, kernels: &FileStat| {
                    (found.st_dev, found.st_ino) == (kernels.st_dev, kernels.st_ino)
                };
                let moved = kernels.is_some_and(|kernels| !old.is_some_and(|old| same(&old, &kernels)));
                return if moved { Err(failed(Errno::ESTALE)) } else { Ok(Target { directory, name, old }) };
            }
        }
    }
    Err(failed(Errno::ELOOP))
}

/// A file in the target's directory that nobody sees yet.
fn unnamed(target: &Target) -> Result<(OwnedFd, Option<Temporary>), Errno> {
    let usual = Mode::from_bits_truncate(0o666);
    match openat(&target.directory, c".", OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC, usual) {
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => {
            let name = temporary_name()?;
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = openat(&target.directory, name.as_os_str(), flags, usual)?;
            let directory = target.directory.try_clone().map_err(|_| Errno::EMFILE)?;
            Ok((file, Some(Temporary { directory, name })))
        }
        result => Ok((result?, None)),
    }
}

/// Gives the file its mode, its owner and its name.
fn settle(
    file: &OwnedFd,
    target: &Target,
    temporary: Option<Temporary>,
    replace: bool,
    mode: Option<Mode>,
) -> Result<(), Errno> {
    if let Some(old) = &target.old {
        let mine = fstat(file)?;
        let mut bits = Mode::from_bits_truncate(old.st_mode);
        if (mine.st_uid, mine.st_gid) != (old.st_uid, old.st_gid) {
            let (uid, gid) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
            if fchown(file, Some(uid), Some(gid)).or_else(|_| fchown(file, None, Some(gid))).is_err() {
                // Another owner's set-user-id program must not become ours.
                bits &= !(Mode::S_ISUID | Mode::S_ISGID);
            }
        }
        fchmod(file, mode.unwrap_or(bits))?;
        // The name must not come to stand for bytes that are not on the disk: that would lose the old ones too.
        fdatasync(file)?;
    } else if let Some(mode) = mode {
        fchmod(file, mode)?;
    }
    let name = target.name.as_os_str();
    match (temporary, replace) {
        (None, _) => match link(file, &target.directory, name) {
            Err(Errno::EEXIST) if replace => {
                let temporary = temporary_name()?;
                link(file, &target.directory, &temporary)?;
                let directory = target.directory.try_clone().map_err(|_| Errno::EMFILE)?;
                take_name(Temporary { directory, name: temporary }, target)
            }
            result => result,
        },
        (Some(temporary), true) => take_name(temporary, target),
        (Some(temporary), false) => {
            // A second link fails where the name is taken, which a rename would not; the first goes with `temporary`.
            linkat(&target.directory, temporary.name.as_os_str(), &target.directory, name, AtFlags::empty())
        }
    }
}

/// Renames the temporary file over the target. Its own removal afterwards finds nothing, as it should.
#[expect(clippy::needless_pass_by_value, reason = "the temporary name is over either way")]
fn take_name(temporary: Temporary, target: &Target) -> Result<(), Errno> {
    renameat(&target.directory, temporary.name.as_os_str(), &target.directory, target.name.as_os_str())
}

/// Gives a file without a name this one. By `/proc`, as the direct way needs a capability.
fn link(file: impl AsFd, directory: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    linkat(AT_FDCWD, path.as_str(), directory.as_fd(), name, AtFlags::AT_SYMLINK_FOLLOW)
}

fn temporary_name() -> Result<OsString, Errno> {
    Ok(OsStr::from_bytes(&[b".hospes-", &random_name()?[..]].concat()).to_owned())
}

/// A file that may be written in a directory that may not: it cannot be replaced, and says what can be done.
fn in_the_way(errno: Errno, path: &[u8], exists: bool) -> FileError {
    match errno {
        Errno::EACCES | Errno::EPERM | Errno::EROFS if exists => FileError::Refused {
            act: ACT,
            path: path.to_vec(),
            kind: ErrorKind::PERMISSION,
            reason: "its directory takes no new file, so it cannot be replaced whole",
            hint: "Write it in place with --append",
        },
        _ => FileError::os(ACT, path)(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const REPLACE: WriteOptions = WriteOptions { append: false, replace: true, mode: None };

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        (dir, home)
    }

    fn put(home: &Home, path: &[u8], bytes: &[u8], options: WriteOptions) -> Result<u64, FileError> {
        let mut writer = Writer::create(home, path, options)?;
        writer.write(bytes)?;
        writer.commit()
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_is_given_up_leaves_the_old_file_and_nothing_else() {
        let (dir, home) = home();
        std::fs::write(dir.path().join("f"), b"old").unwrap();
        for path in [&b"f"[..], b"new"] {
            let mut writer = Writer::create(&home, path, REPLACE).unwrap();
            writer.write(&[7; 100_000]).unwrap();
            drop(writer);
        }
        assert_eq!(names(dir.path()), ["f"]);
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"old");
        assert_eq!(put(&home, b"f", b"newer", REPLACE).unwrap(), 5);
        assert_eq!(names(dir.path()), ["f"]);
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"newer");
    }

    #[test]
    fn a_named_temporary_file_is_as_careful() {
        let (dir, home) = home();
        let target = || find(&home.join(b"f"), b"f").unwrap();
        let named = |target: &Target| {
            let name = temporary_name().unwrap();
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let file = openat(&target.directory, name.as_os_str(), flags, Mode::S_IRWXU).unwrap();
            (file, Temporary { directory: target.directory.try_clone().unwrap(), name })
        };
        let first = target();
        let (file, temporary) = named(&first);
        drop((file, temporary));
        assert!(names(dir.path()).is_empty(), "given up");
        let (file, temporary) = named(&first);
        nix::unistd::write(&file, b"one").unwrap();
        settle(&file, &first, Some(temporary), false, None).unwrap();
        assert_eq!(names(dir.path()), ["f"]);
        let second = target();
        let (file, temporary) = named(&second);
        assert_eq!(settle(&file, &second, Some(temporary), false, None), Err(Errno::EEXIST));
        let (file, temporary) = named(&second);
        settle(&file, &second, Some(temporary), true, None).unwrap();
        assert_eq!(names(dir.path()), ["f"]);
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"");
    }

    #[test]
    fn mode_and_owner_stay_unless_said_otherwise() {
        let (dir, home) = home();
        let path = dir.path().join("f");
        std::fs::write(&path, b"old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o751)).unwrap();
        put(&home, b"f", b"new", REPLACE).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o751);
        put(&home, b"f", b"new", WriteOptions { mode: Some(0o600), ..REPLACE }).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
        put(&home, b"g", b"new", WriteOptions { mode: Some(0o666), ..REPLACE }).unwrap();
        assert_eq!(
            dir.path().join("g").metadata().unwrap().mode() & 0o7777,
            0o666,
            "exact, whatever the umask"
        );
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
            put(&home, b"f", b"newer", REPLACE).unwrap();
            assert_eq!((path.metadata().unwrap().uid(), path.metadata().unwrap().gid()), (12, 34));
        }
    }

    #[test]
    fn what_is_there_is_kept_without_replace_even_when_it_comes_late() {
        let (dir, home) = home();
        let keep = WriteOptions { replace: false, ..REPLACE };
        let mut late = Writer::create(&home, b"f", keep).unwrap();
        late.write(b"late").unwrap();
        put(&home, b"f", b"first", keep).unwrap();
        assert_eq!(late.commit().unwrap_err().errno(), Some(Errno::EEXIST));
        assert_eq!(put(&home, b"f", b"again", keep).unwrap_err().errno(), Some(Errno::EEXIST));
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"first");
        assert_eq!(names(dir.path()), ["f"]);
    }

    #[test]
    fn a_link_stays_a_link_and_one_to_nowhere_is_an_error() {
        let (dir, home) = home();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), b"old").unwrap();
        symlink("d/f", dir.path().join("one")).unwrap();
        symlink(dir.path().join("one"), dir.path().join("d/two")).unwrap();
        symlink("none", dir.path().join("dangling")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        put(&home, b"d/two", b"new", REPLACE).unwrap();
        assert_eq!(std::fs::read(dir.path().join("d/f")).unwrap(), b"new");
        assert!(dir.path().join("one").is_symlink() && dir.path().join("d/two").is_symlink());
        assert_eq!(put(&home, b"dangling", b"", REPLACE).unwrap_err().errno(), Some(Errno::ENOENT));
        assert_eq!(put(&home, b"loop", b"", REPLACE).unwrap_err().errno(), Some(Errno::ELOOP));
    }

    #[test]
    fn appends_devices_and_what_is_no_file() {
        let (dir, home) = home();
        let append = WriteOptions { append: true, ..REPLACE };
        put(&home, b"log", b"one\n", append).unwrap();
        put(&home, b"log", b"two\n", append).unwrap();
        assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), b"one\ntwo\n");
        let keep = WriteOptions { append: true, replace: false, mode: None };
        assert_eq!(put(&home, b"log", b"x", keep).unwrap_err().errno(), Some(Errno::EEXIST));
        put(&home, b"/dev/null", b"gone", REPLACE).unwrap();
        assert!(Path::new("/dev/null").metadata().unwrap().rdev() != 0, "still a device");
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
        assert!(matches!(put(&home, b"pipe", b"", REPLACE), Err(FileError::Refused { .. })));
        assert!(put(&home, b"pipe", b"", append).is_err());
        assert_eq!(put(&home, b".", b"", REPLACE).err().unwrap().errno(), None);
        assert_eq!(put(&home, b"../.hospes/", b"", REPLACE).err().unwrap().errno(), Some(Errno::EISDIR));
    }
}
