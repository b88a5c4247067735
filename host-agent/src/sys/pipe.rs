//! How much a pipe holds.

use std::os::fd::AsFd;

/// Bytes that a pipe holds which nobody has made larger (`pipe(7)`).
pub const USUAL: usize = 64 * 1024;

/// Makes a pipe hold 1 MiB, the most that an ordinary user may ask for. Where the system has no more to give, or knows
/// no such call, it stays as it is: slower and no less right.
pub fn widen(fd: impl AsFd) {
    #[cfg(target_os = "linux")]
    let _ = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETPIPE_SZ(1024 * 1024));
    #[cfg(not(target_os = "linux"))]
    let _ = fd;
}
