//! Extended attributes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Place;
use crate::fuse::abi::XATTR_MAX;

/// Linux has these calls by path alone (before 6.13): the path through /proc starts at the descriptor, and the last
/// component is not followed.
fn path(directory: BorrowedFd<'_>, name: &CStr) -> Result<CString, Errno> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// The value of an attribute.
pub fn get_xattr(file: Place<'_>, attribute: &CStr) -> Result<Vec<u8>, Errno> {
    let mut value = Vec::with_capacity(4096);
    loop {
        let room = rustix::buffer::spare_capacity(&mut value);
        let got = match file {
            Place::Open(file) => rustix::fs::fgetxattr(file, attribute, room),
            Place::At(directory, name) => rustix::fs::lgetxattr(path(directory, name)?, attribute, room),
        };
        match got {
            Err(Errno::RANGE) if value.capacity() < XATTR_MAX => value.reserve(XATTR_MAX),
            other => return other.map(|_| value),
        }
    }
}

/// Sets an attribute; `flags` as in setxattr(2).
pub fn set_xattr(file: Place<'_>, attribute: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
    match file {
        Place::Open(file) => rustix::fs::fsetxattr(file, attribute, value, flags),
        Place::At(directory, name) => rustix::fs::lsetxattr(path(directory, name)?, attribute, value, flags),
    }
}

/// The names of all attributes, a zero after each.
pub fn list_xattrs(file: Place<'_>) -> Result<Vec<u8>, Errno> {
    let mut names: Vec<u8> = Vec::with_capacity(4096);
    loop {
        let room = rustix::buffer::spare_capacity(&mut names);
        let got = match file {
            Place::Open(file) => rustix::fs::flistxattr(file, room),
            Place::At(directory, name) => rustix::fs::llistxattr(path(directory, name)?, room),
        };
        match got {
            Err(Errno::RANGE) if names.capacity() < XATTR_MAX => names.reserve(XATTR_MAX),
            other => return other.map(|_| names),
        }
    }
}

/// Removes an attribute.
pub fn remove_xattr(file: Place<'_>, attribute: &CStr) -> Result<(), Errno> {
    match file {
        Place::Open(file) => rustix::fs::fremovexattr(file, attribute),
        Place::At(directory, name) => rustix::fs::lremovexattr(path(directory, name)?, attribute),
    }
}
