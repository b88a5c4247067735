//! Hospes on the guest's desktop: one helper for each user with a desktop.
//!
//! ```text
//!   compositor <--- [hospes_clipboard] ---> helper ---- /run/hospes/desktop.sock ----> hospes-toolsd
//!                                             ^                                              |
//!                                             +--------- a host's connections, handed over --+
//! ```
//! It is no daemon's child and has no right that its user has not. It connects to `hospes-toolsd` while it has a desktop,
//! and is handed a host's connections while that desktop is the one in front: see `guest_tools::daemon::desktop`. It
//! sleeps on the runtime directory while there is no compositor, and on sockets otherwise.

pub mod daemon;
pub mod display;
pub mod helper;
