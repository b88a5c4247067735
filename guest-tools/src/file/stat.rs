//! Stat: what a path is.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use hospes_protocol::file::Stat;
use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstatat};
use nix::unistd::{Gid, Group, Uid, User};

use super::{FileError, Home};

/// The names of users and groups met so far. Looking one up may ask a directory server, so each is asked once.
#[derive(Debug, Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    fn user(&mut self, uid: u32) -> String {
        let find = || User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(String::new, |u| u.name);
        self.users.entry(uid).or_insert_with(find).clone()
    }

    fn group(&mut self, gid: u32) -> String {
        let find = || Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or_else(String::new, |g| g.name);
        self.groups.entry(gid).or_insert_with(find).clone()
    }
}

/// Describes a path; with `follow`, what a symbolic link points to.
///
/// # Errors
/// [`FileError::Os`].
pub fn stat(home: &Home, path: &[u8], follow: bool) -> Result<Stat, FileError> {
    let full = home.join(path);
    describe(AT_FDCWD, full.as_path(), follow, &mut Names::default()).map_err(FileError::os("stat", path))
}

pub(super) fn describe<P: ?Sized + NixPath>(
    directory: impl AsFd,
    name: &P,
    follow: bool,
    names: &mut Names,
) -> Result<Stat, Errno> {
    let flags = if follow { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
    let found = fstatat(directory.as_fd(), name, flags)?;
    // A link that is replaced between the two calls is described without a target.
    let target = match is(&found, SFlag::S_IFLNK) {
        true => readlinkat(directory.as_fd(), name).map_or_else(|_| Vec::new(), OsStringExt::into_vec),
        false => Vec::new(),
    };
    Ok(Stat {
        mode: found.st_mode,
        size: u64::try_from(found.st_size).unwrap_or(0),
        mtime_s: found.st_mtime,
        mtime_ns: u32::try_from(found.st_mtime_nsec).unwrap_or(0),
        uid: found.st_uid,
        gid: found.st_gid,
        user: names.user(found.st_uid),
        group: names.group(found.st_gid),
        links: links(&found),
        target,
    })
}

/// Whether the file is of this type.
pub(super) fn is(found: &FileStat, kind: SFlag) -> bool {
    found.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// `st_nlink` is 32 bits wide on aarch64 and 64 on x86-64.
#[allow(clippy::useless_conversion, reason = "useless on one of the two architectures")]
fn links(found: &FileStat) -> u64 {
    u64::from(found.st_nlink)
}

/// An entry that may be listed and not described: its type is all that is known.
pub(super) fn nothing_but(kind: Option<nix::dir::Type>) -> Stat {
    use nix::dir::Type;
    let kind = kind.map_or(0, |kind| match kind {
        Type::Fifo => SFlag::S_IFIFO.bits(),
        Type::CharacterDevice => SFlag::S_IFCHR.bits(),
        Type::Directory => SFlag::S_IFDIR.bits(),
        Type::BlockDevice => SFlag::S_IFBLK.bits(),
        Type::File => SFlag::S_IFREG.bits(),
        Type::Symlink => SFlag::S_IFLNK.bits(),
        Type::Socket => SFlag::S_IFSOCK.bits(),
    });
    Stat { mode: kind, ..Stat::default() }
}

pub(super) fn is_dot(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_is_described_itself_unless_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"12345").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        let home = Home::new(dir.path());
        let link = stat(&home, b"link", false).unwrap();
        assert_eq!(
            (link.mode & SFlag::S_IFMT.bits(), &link.target[..]),
            (SFlag::S_IFLNK.bits(), &b"file"[..])
        );
        let file = stat(&home, b"link", true).unwrap();
        assert_eq!((file.size, file.links, &file.target[..]), (5, 1, &b""[..]));
        assert_eq!(stat(&home, b"none", true).unwrap_err().errno(), Some(Errno::ENOENT));
    }
}
