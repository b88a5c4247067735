//! One split virtqueue and the interrupt that goes with it (virtio 1.3, section 2.7).

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Interrupt, chain::Descriptors};

/// What a guest can do wrong with a ring as a whole. The device stops using the ring; a reset revives it.
#[derive(Debug, Error)]
pub enum RingError {
    /// The available index, or a ring address, is not credible.
    #[error("The guest's ring cannot be used")]
    Queue(#[source] QueueError),
}

/// A virtqueue as the device uses it: take chains, give them back used, interrupt once per batch.
pub struct Ring {
    queue: Queue,
    interrupt: Box<dyn Interrupt>,
    /// Chains were given back since the last interrupt decision.
    used_since_notify: bool,
}

impl Ring {
    /// `queue` is configured and ready.
    pub fn new(queue: Queue, interrupt: Box<dyn Interrupt>) -> Self {
        Self { queue, interrupt, used_since_notify: false }
    }

    /// The ring's addresses all lie in `memory`.
    pub fn is_valid(&self, memory: &GuestMemoryMmap) -> bool {
        self.queue.is_valid(memory)
    }

    /// Gives the queue back to the front end.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// Takes the next available chain: its head, or `None` when the guest has offered no more.
    pub fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<u16>, RingError> {
        let mut available = self.queue.iter(memory).map_err(RingError::Queue)?;
        Ok(available.next().map(|chain| chain.head_index()))
    }

    /// Puts the `count` chains taken last back where they were.
    pub fn unpop(&mut self, count: usize) {
        for _ in 0..count {
            self.queue.go_to_previous_position();
        }
    }

    /// Where to find the descriptors of a chain just taken.
    pub fn descriptors<'m>(&self, memory: &'m GuestMemoryMmap) -> Descriptors<'m> {
        Descriptors::new(memory, GuestAddress(self.queue.desc_table()), self.queue.size())
    }

    /// Gives a chain back with `written` bytes written into it.
    pub fn complete(&mut self, memory: &GuestMemoryMmap, head: u16, written: usize) -> Result<(), RingError> {
        self.used_since_notify = true;
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        // A head outside the table is refused by `add_used`; the guest named it, so it cannot miss it.
        match self.queue.add_used(memory, head, written) {
            Err(QueueError::InvalidDescriptorIndex) | Ok(()) => Ok(()),
            Err(error) => Err(RingError::Queue(error)),
        }
    }

    /// Interrupts the guest if chains were given back and it wants to know (virtio 1.3, section 2.7.7).
    pub fn notify(&mut self, memory: &GuestMemoryMmap) -> Result<(), RingError> {
        if !std::mem::take(&mut self.used_since_notify) {
            return Ok(());
        }
        let wanted = if self.queue.event_idx_enabled() {
            self.queue.needs_notification(memory).map_err(RingError::Queue)?
        } else {
            fence(Ordering::SeqCst);
            let flags: u16 = memory
                .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
                .map_err(|error| RingError::Queue(QueueError::GuestMemory(error)))?;
            u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        if wanted && let Err(error) = self.interrupt.trigger() {
            tracing::warn!(%error, "Failed to interrupt the guest");
        }
        Ok(())
    }

    /// Asks for kicks. True: chains came in meanwhile, look again.
    pub fn enable_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        self.queue.enable_notification(memory).map_err(RingError::Queue)
    }

    /// Tells the guest that kicks are not needed while we look anyway.
    pub fn disable_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<(), RingError> {
        self.queue.disable_notification(memory).map_err(RingError::Queue)
    }
}
