//! Pipes between a desktop's programs and us.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// Bytes that a pipe of ours holds: fewer changes between writer and reader than with Linux's 64 KiB.
const SIZE: i32 = 1024 * 1024;

/// A pipe: the end to read, which does not block, and the end to write, which is the other program's and as it expects.
///
/// # Errors
/// The operating system's.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    widen(&read);
    set_nonblocking(&read)?;
    Ok((read, write))
}

/// Gives a pipe more room, where the user's share of the kernel's memory allows that.
pub(crate) fn widen(end: &OwnedFd) {
    #[cfg(target_os = "linux")]
    let _ = fcntl(end, FcntlArg::F_SETPIPE_SZ(SIZE));
    #[cfg(not(target_os = "linux"))]
    let _ = (end, SIZE);
}

/// Makes a descriptor one that does not block.
///
/// # Errors
/// The operating system's.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
