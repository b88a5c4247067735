//! Who is at the other end of a Unix socket.

use std::io;
use std::os::fd::AsFd;

/// The user id of the process at the other end, as the kernel knows it.
///
/// # Errors
/// The operating system's.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn uid(socket: &impl AsFd) -> io::Result<u32> {
    let credentials = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(credentials.uid())
}

/// The user id of the process at the other end, as the kernel knows it.
///
/// # Errors
/// The operating system's.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn uid(socket: &impl AsFd) -> io::Result<u32> {
    Ok(nix::unistd::getpeereid(socket)?.0.as_raw())
}
