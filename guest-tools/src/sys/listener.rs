//! The socket at which the daemon hands connections over: from systemd, from whoever started us, or our own.
#![expect(unsafe_code, reason = "inherited descriptors are taken over by their number")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};

/// `SD_LISTEN_FDS_START` of `sd_listen_fds(3)`.
const FIRST: i32 = 3;

/// Where our socket comes from, and with it who may use it.
#[derive(Debug)]
pub(crate) enum Source {
    /// From systemd: root's, and only root may connect.
    Systemd(UnixListener),
    /// From whoever started us as their own user: that user may connect too.
    Own(UnixListener),
}

/// The socket that systemd passed, or that is our standard input.
///
/// # Errors
/// `NotFound` where there is none.
pub(crate) fn inherited() -> io::Result<Source> {
    let ours = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    if ours("LISTEN_PID") == Some(std::process::id()) && ours("LISTEN_FDS").is_some_and(|count| count >= 1) {
        // SAFETY: systemd passed this descriptor to us, and nobody here has touched it.
        let fd = unsafe { OwnedFd::from_raw_fd(FIRST) };
        return listening(fd).map(Source::Systemd);
    }
    let stdin = io::stdin();
    if !getsockopt(&stdin, sockopt::AcceptConn).unwrap_or(false) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no socket was passed"));
    }
    let copy = fcntl(&stdin, FcntlArg::F_DUPFD_CLOEXEC(FIRST))?;
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: both descriptors are open; 0 stays open and becomes /dev/null.
    if unsafe { libc::dup2(null.as_fd().as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_DUPFD_CLOEXEC has just made it.
    listening(unsafe { OwnedFd::from_raw_fd(copy) }).map(Source::Own)
}

/// A socket of our own, which only our user may connect to.
pub(crate) fn bind(path: &Path) -> io::Result<Source> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(Source::Own(listener))
}

fn listening(fd: OwnedFd) -> io::Result<UnixListener> {
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
