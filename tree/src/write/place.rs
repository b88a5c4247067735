//! Putting an entry under its name in one step, whatever was there, and clearing away what an earlier copy left when it
//! was killed.
//!
//! Where the file system can make files without a name, a copy that dies leaves nothing: the file gets its name when it
//! is whole. Elsewhere, and for the moment in which one file replaces another, there are names that begin with
//! [`PREFIX`]; the next copy into the directory removes those that nobody holds any more.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hospes_protocol::error::{ErrorKind, WireError};
use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, flock, fstat, linkat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use crate::fault::system;

/// How names begin that are not for keeping.
pub(super) const PREFIX: &str = ".hospes-copy-";

/// Seconds after which a name that nobody holds is left over.
const LEFT_OVER: i64 = 120;

/// A name that nobody else uses.
pub(super) fn temporary_name() -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    format!("{PREFIX}{:x}-{next:x}-{now:x}", std::process::id()).into_bytes()
}

/// Makes an entry under `name`; where something is there, under a temporary name that then replaces it.
pub(super) fn make(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mut act: impl FnMut(&[u8]) -> Result<(), Errno>,
) -> Result<(), Errno> {
    match act(name) {
        Err(Errno::EXIST) => {
            let temporary = temporary_name();
            act(&temporary)?;
            replace(dir, &temporary, name)
        }
        other => other,
    }
}

/// Renames over what is there.
pub(super) fn replace(dir: BorrowedFd<'_>, temporary: &[u8], name: &[u8]) -> Result<(), Errno> {
    let renamed = renameat(dir, temporary, dir, name);
    // Two names of one file are left as they are by rename(2), both of them.
    let _ = unlinkat(dir, temporary, AtFlags::empty());
    renamed
}

/// Gives a nameless file its name.
pub(super) fn name(fd: &OwnedFd, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    make(dir, name, |name| {
        #[cfg(target_os = "linux")]
        match linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH) {
            // Before Linux 6.10 that took a capability.
            Err(Errno::NOENT) => (),
            other => return other,
        }
        linkat(CWD, format!("/proc/self/fd/{}", fd.as_raw_fd()), dir, name, AtFlags::SYMLINK_FOLLOW)
    })
}

/// Why something could not be put in place.
pub(super) fn refusal(act: &str, errno: Errno) -> WireError {
    match errno {
        Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY => {
            WireError::new(ErrorKind::FILE_KIND, format_args!("{act}: a directory is in its place"))
        }
        errno => system(act, errno),
    }
}

/// Removes what killed copies left in a directory.
pub(super) fn sweep(dir: &OwnedFd) {
    let Ok(entries) = Dir::read_from(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_bytes().starts_with(PREFIX.as_bytes()) && is_left_over(dir, name) {
            let _ = unlinkat(dir, name, AtFlags::empty());
        }
    }
}

/// A copy under way holds a lock on its file, and one that is just replacing another is not old.
fn is_left_over(dir: &OwnedFd, name: &std::ffi::CStr) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let old = |changed: i64| changed < i64::try_from(now).unwrap_or(0) - LEFT_OVER;
    match openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => {
            let me = rustix::process::geteuid().as_raw();
            fstat(&fd).is_ok_and(|stat| stat.st_uid == me && old(stat.st_ctime))
                && flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok()
        }
        // A symbolic link.
        Err(Errno::LOOP) => {
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| old(stat.st_ctime))
        }
        Err(_) => false,
    }
}
