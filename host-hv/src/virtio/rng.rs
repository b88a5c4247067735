//! A source of random bytes: the host kernel's (virtio 1.3, section 5.4).

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

use super::{Device, Memory, Ring, RingError};

/// Its kind's number (section 5).
pub const DEVICE_ID: u32 = 4;

const RING_SIZES: [u16; 1] = [64];
/// The most that a request is answered with. Linux asks for a few dozen bytes.
const BYTES_MAX: usize = 64 * 1024;
/// How many requests are answered before somebody else has a turn.
const BUDGET: usize = 16;

/// The device.
#[derive(Default)]
pub struct Rng {
    memory: Option<Memory>,
    ring: Option<Ring>,
    /// There may be requests.
    awake: bool,
}

impl Device for Rng {
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn ack_features(&mut self, _features: u64) {}

    fn ring_sizes(&self) -> &[u16] {
        &RING_SIZES
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn set_memory(&mut self, memory: Memory) {
        self.ring = self.ring.take().filter(|ring| ring.is_valid(&memory));
        self.memory = Some(memory);
    }

    fn start_ring(&mut self, _index: usize, ring: Ring) {
        let valid = self.memory.as_ref().is_some_and(|memory| ring.is_valid(memory));
        self.ring = valid.then_some(ring);
        self.awake = true;
    }

    fn stop_ring(&mut self, _index: usize) -> Option<Queue> {
        self.ring.take().map(Ring::into_queue)
    }

    fn kick(&mut self, _index: usize) {
        self.awake = true;
    }

    fn run(&mut self) -> bool {
        let (Some(memory), Some(ring), true) = (&self.memory, &mut self.ring, self.awake) else {
            return false;
        };
        self.awake = match serve(memory, ring) {
            Ok(more) => more,
            Err(error) => {
                tracing::error!(%error, "The guest gets no more random bytes until it resets the device");
                self.ring = None;
                false
            }
        };
        self.awake
    }

    fn reset(&mut self) {
        (self.ring, self.awake) = (None, false);
    }
}

/// True: there is more.
fn serve(memory: &Memory, ring: &mut Ring) -> Result<bool, RingError> {
    let mut pieces = Vec::new();
    for _ in 0..BUDGET {
        let Some(head) = ring.pop(memory)? else {
            ring.notify(memory)?;
            return ring.enable_kicks(memory);
        };
        pieces.clear();
        let written = match ring.descriptors(memory).writable(head, &mut pieces) {
            Ok(_) => fill(&pieces),
            Err(fault) => {
                tracing::warn!(%fault, "The guest's request for random bytes is refused");
                0
            }
        };
        ring.complete(memory, head, written)?;
    }
    ring.notify(memory)?;
    Ok(true)
}

/// Fills the pieces as far as that goes; returns how many bytes are random then.
fn fill(pieces: &[crate::io::IoBuf<'_>]) -> usize {
    let mut random = [0; 256];
    let mut written = 0;
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() && written < BYTES_MAX {
            let len = rest.len().min(random.len());
            if let Err(error) = getrandom::fill(&mut random[..len]) {
                tracing::error!(%error, "This machine's kernel gave no random bytes");
                return written;
            }
            written += rest.copy_from(&random[..len]);
            rest = rest.split_at(len).1;
        }
    }
    written
}
