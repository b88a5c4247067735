//! Mkdir, mv and mktemp: the verbs that are a system call or two.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, open, renameat, renameat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, stat};
use nix::unistd::mkdir;

use super::path::split;
use super::{FileError, Home};
use crate::file::stat::is;
use nix::sys::stat::SFlag;

/// Makes a directory; with `parents` its parents too, and then it may exist. Without `mode`, the umask decides.
///
/// # Errors
/// [`FileError::Os`].
pub fn make_directory(home: &Home, path: &[u8], parents: bool, mode: Option<u32>) -> Result<(), FileError> {
    let full = home.join(path);
    let bits = mode.map_or(Mode::from_bits_truncate(0o777), Mode::from_bits_truncate);
    let make = || {
        let made =
            if parents { make_with_parents(&full, bits)? } else { mkdir(&full, bits).map(|()| true)? };
        // mkdir(2) takes the umask off and ignores the special bits: a mode that was asked for is exact.
        match mode {
            Some(_) if made => {
                fchmodat(AT_FDCWD, &full, bits, FchmodatFlags::NoFollowSymlink).or_else(|errno| {
                    // Kernels before 6.6 cannot do that without following; the directory is ours and new.
                    if errno == Errno::EOPNOTSUPP {
                        fchmodat(AT_FDCWD, &full, bits, FchmodatFlags::FollowSymlink)
                    } else {
                        Err(errno)
                    }
                })
            }
            _ => Ok(()),
        }
    };
    make().map_err(FileError::os("make the directory", path))
}

/// True where the last one is new. Goes up to the first that exists, then down again: no recursion.
fn make_with_parents(full: &Path, bits: Mode) -> Result<bool, Errno> {
    let mut missing = Vec::new();
    let mut at: &Path = full;
    loop {
        let mode = if missing.is_empty() { bits } else { Mode::from_bits_truncate(0o777) };
        match mkdir(at, mode) {
            Ok(()) => break,
            Err(Errno::ENOENT) => {
                missing.push(at);
                at = at.parent().ok_or(Errno::ENOENT)?;
            }
            // EROFS and EACCES may come before EEXIST.
            Err(errno) => {
                return match stat(at) {
                    Ok(found) if is(&found, SFlag::S_IFDIR) => go_down(&missing, bits),
                    _ => Err(errno),
                };
            }
        }
    }
    if missing.is_empty() { Ok(true) } else { go_down(&missing, bits) }
}

fn go_down(missing: &[&Path], bits: Mode) -> Result<bool, Errno> {
    let mut made = false;
    for (depth, at) in missing.iter().enumerate().rev() {
        let mode = if depth == 0 { bits } else { Mode::from_bits_truncate(0o777) };
        made = match mkdir(*at, mode) {
            Ok(()) => true,
            // Somebody else made it meanwhile; `a/.` is `a`.
            Err(Errno::EEXIST) if stat(*at).is_ok_and(|found| is(&found, SFlag::S_IFDIR)) => false,
            Err(errno) => return Err(errno),
        };
    }
    Ok(made)
}

/// Renames. Without `replace`, something at `to` is an error, decided by the kernel in the same step.
///
/// # Errors
/// [`FileError`].
pub fn rename(home: &Home, from: &[u8], to: &[u8], replace: bool) -> Result<(), FileError> {
    let (old, new) = (home.join(from), home.join(to));
    if replace {
        return renameat(AT_FDCWD, &old, AT_FDCWD, &new).map_err(|errno| blame(errno, &old, from, to));
    }
    match renameat2(AT_FDCWD, &old, AT_FDCWD, &new, RenameFlags::RENAME_NOREPLACE) {
        // Some file systems (NFS, many FUSE ones) know no such flag.
        Err(Errno::EINVAL | Errno::ENOSYS) if old != new => Err(FileError::Refused {
            act: "rename",
            path: from.to_vec(),
            kind: hospes_protocol::error::ErrorKind::UNSUPPORTED,
            reason: "this file system cannot rename without replacing, or the target is inside the source",
            hint: "Leave out --no-clobber to replace what may be there",
        }),
        result => result.map_err(|errno| blame(errno, &old, from, to)),
    }
}

/// Which of the two paths the message names.
fn blame(errno: Errno, old: &Path, from: &[u8], to: &[u8]) -> FileError {
    let missing_source = errno == Errno::ENOENT && old.symlink_metadata().is_err();
    let path = if missing_source || matches!(errno, Errno::EINVAL | Errno::EXDEV) { from } else { to };
    FileError::os("rename", path)(errno)
}

/// Names tried before giving up. One is enough unless somebody fills the directory on purpose.
const TRIES: usize = 16;

/// Makes a file (0600) or directory (0700) with a new random name, in `/tmp` or the user's `TMPDIR` without a
/// directory, and gives its full path.
///
/// # Errors
/// [`FileError::Os`].
pub fn make_temporary(
    home: &Home,
    directory: Option<&[u8]>,
    prefix: &[u8],
    suffix: &[u8],
    as_directory: bool,
) -> Result<Vec<u8>, FileError> {
    let base = match directory {
        Some(path) => home.join(path),
        None => std::env::var_os("TMPDIR")
            .filter(|path| Path::new(path).is_absolute())
            .map_or_else(|| PathBuf::from("/tmp"), PathBuf::from),
    };
    let act = if as_directory { "make a temporary directory in" } else { "make a temporary file in" };
    let failed = |errno| FileError::os(act, base.as_os_str().as_bytes())(errno);
    for _ in 0..TRIES {
        let random = random_name().map_err(failed)?;
        let name = [prefix, &random, suffix].concat();
        let path = base.join(OsStr::from_bytes(&name));
        let made = if as_directory {
            mkdir(&path, Mode::S_IRWXU)
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
            open(&path, flags, Mode::S_IRUSR | Mode::S_IWUSR).map(drop)
        };
        match made {
            Ok(()) => return Ok(path.into_os_string().into_vec()),
            Err(Errno::EEXIST) => (),
            Err(errno) => return Err(failed(errno)),
        }
    }
    Err(failed(Errno::EEXIST))
}

/// Twelve letters and digits that nobody could foretell: 71 bits.
pub(super) fn random_name() -> Result<[u8; 12], Errno> {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (mut name, mut filled) = ([0; 12], 0);
    while filled < name.len() {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|_| Errno::EAGAIN)?;
        // Values past the last whole multiple would favour the first letters.
        for value in random.into_iter().filter(|value| *value < 248).take(name.len() - filled) {
            name[filled] = LETTERS[usize::from(value) % LETTERS.len()];
            filled += 1;
        }
    }
    Ok(name)
}

/// The parent and name of a path that must name an entry.
pub(super) fn entry(
    act: &'static str,
    full: &Path,
    path: &[u8],
) -> Result<(PathBuf, std::ffi::OsString, bool), FileError> {
    let parts = split(full);
    match parts.name {
        Some(name) => Ok((parts.parent, name, parts.directory)),
        None => Err(FileError::Refused {
            act,
            path: path.to_vec(),
            kind: hospes_protocol::error::ErrorKind::FILE_KIND,
            reason: "the path ends in the root, \".\" or \"..\"",
            hint: "Name the directory itself",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path());
        (dir, home)
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_directory_has_the_mode_asked_for_and_its_parents_the_usual_one() {
        let (dir, home) = home();
        make_directory(&home, b"a/b/c", true, Some(0o2700)).unwrap();
        assert_eq!(mode(&dir.path().join("a/b/c")), 0o2700);
        assert_eq!(mode(&dir.path().join("a/b")) & 0o700, 0o700);
        make_directory(&home, b"a/b/c", true, Some(0o755)).unwrap();
        assert_eq!(mode(&dir.path().join("a/b/c")), 0o2700, "one that existed is left alone");
        make_directory(&home, b"a/b/d/", true, None).unwrap();
        make_directory(&home, b"/", true, None).unwrap();
        let again = make_directory(&home, b"a", false, None).unwrap_err();
        assert_eq!(again.to_string(), "Could not make the directory \"a\": File exists");
        std::fs::write(dir.path().join("file"), []).unwrap();
        assert_eq!(make_directory(&home, b"file", true, None).unwrap_err().errno(), Some(Errno::EEXIST));
        assert_eq!(make_directory(&home, b"file/x/y", true, None).unwrap_err().errno(), Some(Errno::ENOTDIR));
    }

    #[test]
    fn a_rename_replaces_only_where_it_may() {
        let (dir, home) = home();
        std::fs::write(dir.path().join("a"), b"a").unwrap();
        std::fs::write(dir.path().join("b"), b"b").unwrap();
        assert_eq!(rename(&home, b"a", b"b", false).unwrap_err().errno(), Some(Errno::EEXIST));
        rename(&home, b"a", b"b", true).unwrap();
        assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"a");
        rename(&home, b"b", b"c", false).unwrap();
        let gone = rename(&home, b"b", b"d", true).unwrap_err();
        assert_eq!(gone.to_string(), "Could not rename \"b\": No such file or directory");
        let nowhere = rename(&home, b"c", b"none/d", true).unwrap_err();
        assert_eq!(nowhere.to_string(), "Could not rename \"none/d\": No such file or directory");
    }

    #[test]
    fn temporary_files_are_private_and_never_the_same() {
        let (dir, home) = home();
        let mut seen = std::collections::HashSet::new();
        for n in 0..50 {
            let path = make_temporary(&home, Some(b"."), b"x-", b".log", n % 2 == 0).unwrap();
            let path = PathBuf::from(OsStr::from_bytes(&path));
            assert!(path.is_absolute() && path.starts_with(dir.path()));
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(name.starts_with("x-") && name.ends_with(".log") && name.len() == 2 + 12 + 4);
            assert_eq!(mode(&path), if n % 2 == 0 { 0o700 } else { 0o600 });
            assert!(seen.insert(name));
        }
        assert!(make_temporary(&home, Some(b"none"), b"", b"", false).is_err());
    }
}
