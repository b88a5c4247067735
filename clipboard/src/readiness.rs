//! Descriptors in the event loop.
#![expect(unsafe_code, reason = "registering a descriptor relies on its staying open and the same")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A non-blocking descriptor whose readiness the event loop tells.
///
/// # Errors
/// The operating system's.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` has one descriptor for all its life, which stays open until it is dropped; the `AsyncFd`
    // owns it and takes it out of the event loop before.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
