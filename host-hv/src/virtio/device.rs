//! The seam: a device is written against this and never learns who serves it.
//!
//! Order of calls, all on one thread: [`ack_features`](Device::ack_features), [`set_memory`](Device::set_memory),
//! then [`start_ring`](Device::start_ring) for each ring in any order, [`kick`](Device::kick) and
//! [`run`](Device::run) any number of times, [`stop_ring`](Device::stop_ring). vhost-user starts and stops rings one
//! by one, and stops them all for a mere pause of the machine: a stop is therefore no reset.

use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::Queue;

use super::{Memory, Ring};

/// Tells the guest that used buffers wait: an eventfd under vhost-user, an interrupt line in our own machine.
pub trait Interrupt: Send {
    /// Raises the interrupt once.
    fn trigger(&self) -> io::Result<()>;
}

/// A virtio device.
pub trait Device {
    /// The feature bits offered, transport bits such as `VIRTIO_F_VERSION_1` included (virtio 1.3, section 6).
    fn features(&self) -> u64;

    /// The driver's choice among [`features`](Self::features).
    fn ack_features(&mut self, features: u64);

    /// The most entries each ring may have; the length is the number of rings.
    fn ring_sizes(&self) -> &[u16];

    /// Reads the configuration space from `offset`; bytes past its end are left alone.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Replaces guest memory. Rings that no longer lie within it stop.
    fn set_memory(&mut self, memory: Memory);

    /// Offers the descriptor on which kicks of ring `index` come, before the ring is started. A device with threads
    /// of its own answers true and waits there itself, until [`stop_ring`](Self::stop_ring); the others are called.
    fn watch_kicks(&mut self, index: usize, kick: Option<BorrowedFd<'_>>) -> bool {
        let _ = (index, kick);
        false
    }

    /// Hands ring `index` to the device.
    fn start_ring(&mut self, index: usize, ring: Ring);

    /// Takes ring `index` back, with the positions the device has reached.
    fn stop_ring(&mut self, index: usize) -> Option<Queue>;

    /// The driver says that ring `index` has new buffers.
    fn kick(&mut self, index: usize);

    /// Does the work that waits, up to a budget. True: there is more, call again before sleeping.
    fn run(&mut self) -> bool;

    /// Forgets everything the driver said and every connection or request it had.
    fn reset(&mut self);
}
