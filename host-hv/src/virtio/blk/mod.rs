//! Disks (virtio 1.3, section 5.2): what a request asks ([`request`]), the file that it asks of ([`Disk`]), and the
//! device between the two ([`Blk`]).

mod device;
mod disk;
pub mod request;

pub use device::Blk;
pub use disk::{Disk, DiskError};

/// Its kind's number (section 5).
pub const DEVICE_ID: u32 = 2;

/// What everything is counted in, whatever the disk's blocks are (5.2.4).
pub const SECTOR: u64 = 512;
