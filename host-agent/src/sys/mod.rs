//! What differs between operating systems. Each module here has one face on all of them.

pub mod activation;
pub mod peer;
pub mod pipe;
pub mod readiness;
pub mod signals;
pub mod vsock;
pub mod wake;
pub mod watch;

use nix::sys::socket::MsgFlags;

/// Sends without `SIGPIPE`, where a flag can say so; elsewhere the process ignores the signal.
#[cfg(target_os = "linux")]
pub const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);
/// Sends without `SIGPIPE`, where a flag can say so; elsewhere the process ignores the signal.
#[cfg(not(target_os = "linux"))]
pub const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT;
