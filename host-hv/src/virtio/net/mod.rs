//! The network device (virtio 1.3, section 5.1): Ethernet frames between a guest and a program of the host that is its
//! network, over a Unix socket.
//!
//! [`link`] the socket and its framing; [`device`] the two queues. Who gives addresses, translates and forwards is that
//! program: passt, gvproxy.

pub mod device;
pub mod link;

pub use device::{Address, Net};
pub use link::Link;

/// The kind's number (5.1.1).
pub const DEVICE_ID: u32 = 1;
