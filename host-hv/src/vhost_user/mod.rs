//! The vhost-user front end: serves a [`Device`](crate::virtio::Device) to QEMU and every other VMM that speaks the
//! protocol. Linux only, as the protocol's crates are.
//!
//! One thread does everything: requests of the VMM, kicks, streams. So a ring is never touched while it is being
//! stopped, and nothing needs a lock. That is why this is built on the `vhost` crate and not on `vhost-user-backend`,
//! which handles requests in a thread of its own.

mod control;
mod folders;
mod server;
mod vmm;

pub use control::Control;
pub use folders::{FolderServer, FolderServerError};
pub use server::{GuestSpec, Server, ServerError};
