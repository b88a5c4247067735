//! The device: one queue of requests, served in their order by the thread that runs it.

use std::io::ErrorKind;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

use super::Disk;
use super::request::{
    Ask, HEADER_LEN, Limits, RANGE_LEN, RANGE_SECTORS_MAX, RANGES_MAX, Status, parse, range,
};
use crate::io::IoBuf;
use crate::virtio::{Device, Memory, Ring, RingError};

const RING_SIZES: [u16; 1] = [256];
/// Pieces of data in a request: a ring's entries, less header and status.
const SEGMENTS_MAX: u32 = 254;
/// How many requests are served before orders are looked for.
const BUDGET: usize = 16;
/// What the guest's file systems should not write less of.
const BLOCK: u32 = 512;

// Feature bits (virtio 1.3, 5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_READ_ONLY: u64 = 1 << 5;
const F_BLOCK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const CONFIG_LEN: usize = 60;

/// A disk for one guest.
pub struct Blk {
    disk: Arc<Disk>,
    config: [u8; CONFIG_LEN],
    /// The driver knows that it has to flush. One that does not is told of nothing that is not on the disk (5.2.6.2).
    flushes: bool,
    memory: Option<Memory>,
    ring: Option<Ring>,
    /// There may be requests.
    awake: bool,
}

impl Blk {
    /// Serves this disk.
    #[must_use]
    pub fn new(disk: Arc<Disk>) -> Self {
        let config = config(disk.sectors());
        Self { disk, config, flushes: false, memory: None, ring: None, awake: false }
    }

    /// Serves what waits, up to the budget. True: there is more.
    fn serve(&mut self) -> Result<bool, RingError> {
        let (Some(memory), Some(ring)) = (&self.memory, &mut self.ring) else { return Ok(false) };
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for _ in 0..BUDGET {
            let Some(head) = ring.pop(memory)? else { return ring.enable_kicks(memory) };
            readable.clear();
            writable.clear();
            let written = match ring.descriptors(memory).request(head, &mut readable, &mut writable) {
                Ok(()) => answer(&self.disk, self.flushes, &mut readable, &mut writable),
                Err(fault) => {
                    tracing::warn!(%fault, "The guest's request to a disk is refused");
                    0
                }
            };
            ring.complete(memory, head, written)?;
            ring.notify(memory)?;
        }
        Ok(true)
    }
}

impl Device for Blk {
    fn features(&self) -> u64 {
        let common =
            1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        let own = if self.disk.read_only() { F_READ_ONLY } else { F_FLUSH | F_DISCARD | F_WRITE_ZEROES };
        common | own | F_SEG_MAX | F_BLOCK_SIZE
    }

    fn ack_features(&mut self, features: u64) {
        self.flushes = features & F_FLUSH != 0;
    }

    fn ring_sizes(&self) -> &[u16] {
        &RING_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.config.iter().skip(offset)) {
            *to = *from;
        }
    }

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
        if self.awake {
            self.awake = self.serve().unwrap_or_else(|error| {
                tracing::error!(%error, "The guest's disk stops until the guest resets it");
                self.ring = None;
                false
            });
        }
        self.awake
    }

    fn reset(&mut self) {
        (self.ring, self.awake, self.flushes) = (None, false, false);
    }
}

/// The configuration space (5.2.4).
fn config(sectors: u64) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    config[..8].copy_from_slice(&sectors.to_le_bytes());
    let ranges = u32::try_from(RANGES_MAX).unwrap_or(1);
    for (at, value) in [
        (12, SEGMENTS_MAX),
        (20, BLOCK),
        // Discards: sectors, ranges, alignment in sectors. Zeros: sectors, ranges.
        (36, RANGE_SECTORS_MAX),
        (40, ranges),
        (44, 4096 / BLOCK),
        (48, RANGE_SECTORS_MAX),
        (52, ranges),
    ] {
        config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    // `write_zeroes_may_unmap`.
    config[56] = 1;
    config
}

/// Does what is asked; returns how many bytes were written into the request, its status included.
fn answer(disk: &Disk, flushes: bool, readable: &mut [IoBuf<'_>], writable: &mut Vec<IoBuf<'_>>) -> usize {
    let Some(status) = take_last(writable) else {
        tracing::warn!("The guest's request to a disk has no room for an answer");
        return 0;
    };
    let mut header = [0; HEADER_LEN];
    let (result, written) = if take(readable, &mut header) {
        let room = len(writable);
        let limits = Limits { sectors: disk.sectors(), read_only: disk.read_only() };
        match parse(header, len(readable), room, limits) {
            Ok(ask) => match perform(disk, flushes, ask, limits, readable, writable) {
                Ok(()) if matches!(ask, Ask::Read(_)) => (Status::Ok, room),
                Ok(()) if ask == Ask::Id => (Status::Ok, room.min(disk.serial().len())),
                Ok(()) => (Status::Ok, 0),
                Err(status) => (status, 0),
            },
            Err(status) => (status, 0),
        }
    } else {
        (Status::IoError, 0)
    };
    written + status.copy_from(&[result as u8])
}

fn perform(
    disk: &Disk,
    flushes: bool,
    ask: Ask,
    limits: Limits,
    readable: &mut [IoBuf<'_>],
    writable: &mut [IoBuf<'_>],
) -> Result<(), Status> {
    let done = match ask {
        Ask::Read(at) => disk.read(at, writable),
        Ask::Write(at) => disk.write(at, readable),
        Ask::Flush => disk.flush(),
        Ask::Id => {
            let mut serial = &disk.serial()[..];
            for piece in writable {
                serial = &serial[piece.copy_from(serial)..];
            }
            Ok(())
        }
        Ask::Discard | Ask::Zero => {
            let mut raw = [0; RANGE_LEN];
            let mut ranges = Vec::with_capacity(RANGES_MAX);
            while take(readable, &mut raw) {
                ranges.push(range(raw, ask, limits)?);
            }
            // An empty range is nothing to a disk, and an error to the kernel.
            ranges.iter().filter(|range| range.bytes > 0).try_for_each(|range| match ask {
                Ask::Discard => disk.discard(range.at, range.bytes),
                _ => disk.zero(range.at, range.bytes, range.unmap),
            })
        }
    };
    let changes = matches!(ask, Ask::Write(_) | Ask::Zero);
    let done = done.and_then(|()| if changes && !flushes { disk.flush() } else { Ok(()) });
    done.map_err(|error| {
        if error.kind() == ErrorKind::Unsupported {
            return Status::Unsupported;
        }
        tracing::error!(%error, ?ask, "A disk of this machine failed the guest");
        Status::IoError
    })
}

fn len(pieces: &[IoBuf<'_>]) -> usize {
    pieces.iter().map(IoBuf::len).fold(0, usize::saturating_add)
}

/// Takes the last byte of the pieces.
fn take_last<'m>(pieces: &mut Vec<IoBuf<'m>>) -> Option<IoBuf<'m>> {
    while pieces.pop_if(|piece| piece.is_empty()).is_some() {}
    let piece = pieces.last_mut()?;
    let (rest, last) = piece.split_at(piece.len() - 1);
    *piece = rest;
    Some(last)
}

/// Takes bytes from the begin of the pieces. False: there are too few.
fn take(pieces: &mut [IoBuf<'_>], to: &mut [u8]) -> bool {
    let mut taken = 0;
    for piece in pieces {
        let copied = piece.copy_to(&mut to[taken..]);
        *piece = piece.split_at(copied).1;
        taken += copied;
    }
    taken == to.len()
}
