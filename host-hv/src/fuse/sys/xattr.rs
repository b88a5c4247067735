//! Extended attributes. Those of users only: the others mean something to the host's own kernel.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::fuse::abi::XATTR_MAX;

const PREFIX: &[u8] = b"user.";

/// Linux has these calls by path alone (before 6.13): the path through /proc starts at the descriptor, and the last
/// component is not followed.
fn path(directory: impl AsFd, name: &CStr) -> Result<CString, Errno> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).map_err(|_| Errno::INVAL)
}

fn allowed(name: &CStr) -> Result<(), Errno> {
    if name.to_bytes().starts_with(PREFIX) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

/// The value of an attribute.
pub fn get_xattr(directory: impl AsFd, name: &CStr, attribute: &CStr) -> Result<Vec<u8>, Errno> {
    allowed(attribute)?;
    let mut value = Vec::with_capacity(4096);
    let path = path(directory, name)?;
    loop {
        match rustix::fs::lgetxattr(&path, attribute, rustix::buffer::spare_capacity(&mut value)) {
            Err(Errno::RANGE) if value.capacity() < XATTR_MAX => value.reserve(XATTR_MAX),
            other => return other.map(|_| value),
        }
    }
}

/// Sets an attribute; `flags` as in setxattr(2).
pub fn set_xattr(
    directory: impl AsFd,
    name: &CStr,
    attribute: &CStr,
    value: &[u8],
    flags: u32,
) -> Result<(), Errno> {
    allowed(attribute)?;
    let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    rustix::fs::lsetxattr(&path(directory, name)?, attribute, value, flags)
}

/// The names of all attributes that may be read, a zero after each.
pub fn list_xattrs(directory: impl AsFd, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut names: Vec<u8> = Vec::with_capacity(4096);
    let path = path(directory, name)?;
    loop {
        match rustix::fs::llistxattr(&path, rustix::buffer::spare_capacity(&mut names)) {
            Err(Errno::RANGE) if names.capacity() < XATTR_MAX => names.reserve(XATTR_MAX),
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    let users = names.split_inclusive(|&byte| byte == 0).filter(|name| name.starts_with(PREFIX));
    Ok(users.flatten().copied().collect())
}

/// Removes an attribute.
pub fn remove_xattr(directory: impl AsFd, name: &CStr, attribute: &CStr) -> Result<(), Errno> {
    allowed(attribute)?;
    rustix::fs::lremovexattr(&path(directory, name)?, attribute)
}
