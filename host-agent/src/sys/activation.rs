//! Sockets that a service manager opened for us (`sd_listen_fds(3)`).
#![expect(unsafe_code, reason = "the protocol names descriptors by number")]

use std::os::fd::{FromRawFd, OwnedFd};

/// The first descriptor that is passed, by the protocol.
const FIRST: i32 = 3;

/// The one socket that was passed to us, if one was.
///
/// Call it once, before anything else opens descriptors.
#[must_use]
pub fn socket() -> Option<OwnedFd> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID")? != std::process::id() || number("LISTEN_FDS")? < 1 {
        return None;
    }
    nix::fcntl::fcntl(
        // SAFETY: the descriptor is only borrowed for this call, which fails where it is not open.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(FIRST) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )
    .ok()?;
    // SAFETY: it is open, as the call above showed, and the service manager gave it to this very process, in which
    // nothing else knows of it.
    Some(unsafe { OwnedFd::from_raw_fd(FIRST) })
}
