//! What a machine is to be.

use std::sync::Arc;

use super::kernel::Kernel;
use super::network::Network;
use super::streams::Streams;
use crate::virtio::blk::Disk;

/// A machine's parts. One that begins anew after a reset has the same.
#[derive(Clone)]
pub struct Plan {
    /// 1 to 32.
    pub vcpus: u32,
    /// In bytes.
    pub memory: u64,
    /// What starts.
    pub kernel: Kernel,
    /// Its first file system.
    pub initramfs: Option<Vec<u8>>,
    /// Its command line.
    pub arguments: String,
    /// Its disks, in the order in which it finds them.
    pub disks: Vec<Arc<Disk>>,
    /// Its networks, in the order in which it finds them.
    pub networks: Vec<Network>,
    /// Folders of the host's.
    #[cfg(target_os = "linux")]
    pub folders: Option<Folders>,
    /// Streams between it and the host.
    pub streams: Option<Arc<Streams>>,
}

/// A file system device.
#[cfg(target_os = "linux")]
#[derive(Clone)]
pub struct Folders {
    /// What the guest mounts it by.
    pub tag: String,
    /// Whose folders they are.
    pub server: Arc<crate::fuse::Server>,
    /// How many requests are served at a time.
    pub threads: usize,
}
