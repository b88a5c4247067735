//! Descriptors of our own with tokio's readiness, safely: only types that keep one descriptor for life are admitted.
#![expect(unsafe_code, reason = "tokio asks its caller to promise that a descriptor stays open and the same")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types whose descriptor stays open, and the same, as long as the value lives.
///
/// # Safety
/// `as_raw_fd` must give the same open descriptor on every call, and no method may close or replace it through a shared
/// or exclusive reference.
pub(crate) unsafe trait OneFd: AsRawFd {}

// SAFETY: it owns its descriptor and has no method that replaces it.
unsafe impl OneFd for OwnedFd {}

// SAFETY: as OwnedFd, which it wraps.
unsafe impl OneFd for File {}

// SAFETY: as OwnedFd, which it wraps; a new mask goes to the same descriptor.
unsafe impl OneFd for nix::sys::signalfd::SignalFd {}

/// Registers a descriptor with the runtime.
///
/// # Errors
/// What `epoll_ctl(2)` says.
pub(crate) fn register<T: OneFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: OneFd's implementors promise what tokio asks for.
    unsafe { Ok(AsyncFd::register_with_interest(owner, interest)?) }
}
