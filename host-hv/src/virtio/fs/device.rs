//! The device: what the front end asks of it. The work is the pool's.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

use super::pool::Pool;
use super::{CONFIG_SIZE, TAG_MAX};
use crate::fuse::Server;
use crate::virtio::{Device, Memory, Ring};

/// Entries per ring.
const RING_SIZE: u16 = 1024;

/// Request queues: a VMM may use fewer.
const REQUEST_QUEUES: usize = 8;

/// Why there is no device.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum FsError {
    #[error("\"{tag}\" cannot be a tag: it must be 1 to {TAG_MAX} bytes")]
    Tag { tag: String },
    #[error("The threads that serve requests cannot be started")]
    Threads(#[source] io::Error),
}

/// A file system device for one guest.
pub struct Fs {
    config: [u8; CONFIG_SIZE],
    ring_sizes: [u16; REQUEST_QUEUES + 1],
    server: Arc<Server>,
    pool: Pool,
}

impl Fs {
    /// A device whose file system the guest mounts by `tag`, with so many threads.
    pub fn new(tag: &str, server: Arc<Server>, threads: usize) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > TAG_MAX {
            return Err(FsError::Tag { tag: tag.to_owned() });
        }
        let mut config = [0; CONFIG_SIZE];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_MAX..].copy_from_slice(&u32::try_from(REQUEST_QUEUES).unwrap_or(1).to_le_bytes());
        let ring_sizes = [RING_SIZE; REQUEST_QUEUES + 1];
        let pool = Pool::start(server.clone(), ring_sizes.len(), threads).map_err(FsError::Threads)?;
        Ok(Self { config, ring_sizes, server, pool })
    }
}

impl Device for Fs {
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn ack_features(&mut self, _features: u64) {}

    fn ring_sizes(&self) -> &[u16] {
        &self.ring_sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            if let Some(&value) = self.config.get(offset.saturating_add(at)) {
                *byte = value;
            }
        }
    }

    fn set_memory(&mut self, memory: Memory) {
        self.pool.set_memory(&memory);
    }

    fn watch_kicks(&mut self, index: usize, kick: Option<BorrowedFd<'_>>) -> bool {
        let Some(kick) = kick else { return false };
        match self.pool.watch(index, kick) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, ring = index, "Failed to wait for the guest's kicks; asking to be called");
                false
            }
        }
    }

    fn start_ring(&mut self, index: usize, ring: Ring) {
        self.pool.start_ring(index, ring);
    }

    fn stop_ring(&mut self, index: usize) -> Option<Queue> {
        self.pool.stop_ring(index).map(Ring::into_queue)
    }

    fn kick(&mut self, index: usize) {
        self.pool.nudge(index);
    }

    fn run(&mut self) -> bool {
        false
    }

    fn reset(&mut self) {
        for index in 0..self.ring_sizes.len() {
            self.pool.stop_ring(index);
        }
        self.server.reset();
    }
}
