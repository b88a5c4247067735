//! Extended attributes: which ones travel, and under which names.
//!
//! On the wire they have Linux's names. A user's own (`user.…`) and access lists (`system.posix_acl_…`) travel; what
//! belongs to the system they come from (`security.…`, `trusted.…`, Apple's `com.apple.…`) does not. macOS has no name
//! spaces: there `user.` is taken off and put on.

use std::os::fd::BorrowedFd;

use hospes_protocol::copy::archive::put_xattr;
use hospes_protocol::limits::{COPY_NAME, COPY_XATTRS};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// What reading found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// All that there are, or none.
    All,
    /// More than an entry may have.
    TooMany,
    /// The file system has none: no need to ask again.
    Unsupported,
}

/// Appends an open file's attributes to `out`, in the archive's form.
pub(crate) fn read(fd: BorrowedFd<'_>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Found {
    scratch.resize(64 * 1024, 0);
    let names = match flistxattr(fd, &mut scratch[..]) {
        Ok(0) => return Found::All,
        Ok(len) => scratch[..len].to_vec(),
        Err(Errno::NOTSUP) => return Found::Unsupported,
        Err(Errno::RANGE) => return Found::TooMany,
        Err(_) => return Found::All,
    };
    let mut found = Found::All;
    for name in names.split(|byte| *byte == 0) {
        let Some(wire) = to_wire(name) else { continue };
        match fgetxattr(fd, name, &mut scratch[..]) {
            Ok(len) if wire.len() <= COPY_NAME && out.len() + wire.len() + len + 20 <= COPY_XATTRS => {
                put_xattr(&wire, &scratch[..len], out);
            }
            Ok(_) | Err(Errno::RANGE) => found = Found::TooMany,
            Err(_) => (),
        }
    }
    found
}

/// Sets one attribute; `None` where its name does not belong on this system.
pub(crate) fn set(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Option<Result<(), Errno>> {
    from_wire(name).map(|name| fsetxattr(fd, name, value, XattrFlags::empty()))
}

#[cfg(not(target_os = "macos"))]
fn to_wire(name: &[u8]) -> Option<Vec<u8>> {
    from_wire(name).map(<[u8]>::to_vec)
}

#[cfg(not(target_os = "macos"))]
fn from_wire(name: &[u8]) -> Option<&[u8]> {
    let ours = name.starts_with(b"user.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default";
    ours.then_some(name)
}

#[cfg(target_os = "macos")]
fn to_wire(name: &[u8]) -> Option<Vec<u8>> {
    (!name.is_empty() && !name.starts_with(b"com.apple.")).then(|| [b"user.", name].concat())
}

#[cfg(target_os = "macos")]
fn from_wire(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b"user.").filter(|name| !name.is_empty() && !name.starts_with(b"com.apple."))
}

/// Whether a directory gives what is made in it an access list, which overrules the mode that a file is made with.
#[cfg(target_os = "linux")]
pub(crate) fn has_default_acl(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fgetxattr_query(fd, c"system.posix_acl_default").is_ok_and(|len| len > 0)
}

#[cfg(not(target_os = "linux"))]
pub(crate) const fn has_default_acl(_: BorrowedFd<'_>) -> bool {
    false
}
