//! Virtio devices, each written once and served by two front ends.
//!
//! ```text
//!   guest driver ── virtqueues in guest memory ──┐
//!                                                ▼
//!            virtio::Device  ◄── vhost_user (QEMU and every VMM that speaks vhost-user; Linux)
//!                  │         ◄── virtio::mmio, machine::slot (our own [`machine`]; disks and random numbers so far)
//!                  ▼
//!            virtio::vsock   ── io ──► Unix sockets on the host, or another guest
//!            virtio::fs      ── fuse ► directories of the host
//!            virtio::blk     ── io ──► disk images and block devices of the host
//!            virtio::rng     ────────► the host's random numbers
//! ```
//!
//! The core knows guest memory, virtqueues and byte streams. What only one operating system has stands behind
//! [`io`] and [`vhost_user`].

#[cfg(target_os = "linux")]
pub mod control;
#[cfg(target_os = "linux")]
pub mod fuse;
pub mod hypervisor;
pub mod io;
pub mod machine;
#[cfg(target_os = "linux")]
pub mod sandbox;
#[cfg(feature = "testing")]
#[expect(clippy::panic, reason = "a test fails by a panic")]
pub mod testing;
pub mod virtio;

#[cfg(target_os = "linux")]
pub mod vhost_user;
