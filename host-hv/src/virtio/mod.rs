//! What every virtio device needs: the seam between a device and its front ends, rings and descriptor chains.
//!
//! Source throughout: "Virtual I/O Device (VIRTIO) Version 1.3", cited as "virtio 1.3" with the section.

pub mod blk;
mod chain;
mod device;
#[cfg(target_os = "linux")]
pub mod fs;
pub mod mmio;
pub mod net;
mod ring;
pub mod rng;
pub mod vsock;

pub use chain::{ChainError, Descriptors, MAX_CHAIN_SEGMENTS};
pub use device::{Device, Interrupt};
pub use ring::{Ring, RingError};

use std::sync::Arc;

/// The guest's memory. A front end replaces it as a whole when the map changes.
pub type Memory = Arc<vm_memory::GuestMemoryMmap>;
