//! Descriptor chains: from a head index to pieces of host memory, or a reason why not (virtio 1.3, section 2.7.5).
//!
//! A chain may be split in any way the specification allows, so nothing here or above assumes a layout. Whatever it
//! does not allow is an error that names the fault: the guest wrote it, and a driver's author will want to know.

use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::io::IoBuf;

/// The most pieces a chain may have; the host kernel takes no more in one call.
pub const MAX_CHAIN_SEGMENTS: usize = 1024;

const DESCRIPTOR_SIZE: u32 = 16;

/// A chain that the guest should not have made.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ChainError {
    #[error("The guest's chain points to descriptor {index}, and the table has {size}")]
    Index { index: u16, size: u16 },
    #[error("The guest's chain is a loop, or has more than {limit} descriptors")]
    TooLong { limit: usize },
    #[error("The guest's descriptor names {length} bytes at {address:#x}, which is not in its memory")]
    Memory { address: u64, length: u32 },
    #[error("The guest's indirect table has {length} bytes: not one or more whole descriptors")]
    IndirectLength { length: u32 },
    #[error("The guest's indirect descriptor is nested, chained or writable")]
    IndirectFlags,
    #[error("The guest's chain has a descriptor to read from after one to write to")]
    Order,
    #[error("The guest's chain has a descriptor of the wrong direction for this queue")]
    Direction,
}

/// The descriptor table of one ring.
#[derive(Clone, Copy)]
pub struct Descriptors<'m> {
    memory: &'m GuestMemoryMmap,
    table: GuestAddress,
    size: u16,
}

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u32,
    next: u16,
}

impl<'m> Descriptors<'m> {
    pub(super) fn new(memory: &'m GuestMemoryMmap, table: GuestAddress, size: u16) -> Self {
        Self { memory, table, size }
    }

    /// Appends the pieces of a chain that the device may only read; returns their bytes.
    pub fn readable(&self, head: u16, pieces: &mut Vec<IoBuf<'m>>) -> Result<usize, ChainError> {
        self.one_direction(head, false, pieces)
    }

    /// Appends the pieces of a chain that the device may only write; returns their bytes.
    pub fn writable(&self, head: u16, pieces: &mut Vec<IoBuf<'m>>) -> Result<usize, ChainError> {
        self.one_direction(head, true, pieces)
    }

    /// Appends the pieces of a request: those to read first, those to write the answer to after them.
    pub fn request(
        &self,
        head: u16,
        readable: &mut Vec<IoBuf<'m>>,
        writable: &mut Vec<IoBuf<'m>>,
    ) -> Result<(), ChainError> {
        self.walk(head, |descriptor| {
            let pieces =
                if descriptor.flags & VRING_DESC_F_WRITE == 0 { &mut *readable } else { &mut *writable };
            self.map(descriptor, 0, pieces)
        })
    }

    /// On an error `pieces` is as it was.
    fn one_direction(
        &self,
        head: u16,
        writable: bool,
        pieces: &mut Vec<IoBuf<'m>>,
    ) -> Result<usize, ChainError> {
        let start = pieces.len();
        let mut bytes = 0usize;
        let result = self.walk(head, |descriptor| {
            if (descriptor.flags & VRING_DESC_F_WRITE != 0) != writable {
                return Err(ChainError::Direction);
            }
            bytes = bytes.saturating_add(descriptor.length as usize);
            self.map(descriptor, start, pieces)
        });
        if result.is_err() {
            pieces.truncate(start);
        }
        result.map(|()| bytes)
    }

    /// A buffer may lie across two of the host's mappings.
    fn map(
        &self,
        descriptor: Descriptor,
        start: usize,
        pieces: &mut Vec<IoBuf<'m>>,
    ) -> Result<(), ChainError> {
        let Descriptor { address, length, .. } = descriptor;
        for slice in self.memory.get_slices(GuestAddress(address), length as usize) {
            let slice = slice.map_err(|_| ChainError::Memory { address, length })?;
            if pieces.len() - start == MAX_CHAIN_SEGMENTS {
                return Err(ChainError::TooLong { limit: MAX_CHAIN_SEGMENTS });
            }
            pieces.push(IoBuf::from(slice));
        }
        Ok(())
    }

    fn walk(
        &self,
        head: u16,
        mut each: impl FnMut(Descriptor) -> Result<(), ChainError>,
    ) -> Result<(), ChainError> {
        let (mut table, mut size, mut index) = (self.table, self.size, head);
        let mut indirect = false;
        let mut wrote = false;
        for _ in 0..MAX_CHAIN_SEGMENTS {
            let descriptor = self.read(table, size, index)?;
            if descriptor.flags & VRING_DESC_F_INDIRECT != 0 {
                if indirect || descriptor.flags & (VRING_DESC_F_NEXT | VRING_DESC_F_WRITE) != 0 {
                    return Err(ChainError::IndirectFlags);
                }
                let (length, address) = (descriptor.length, descriptor.address);
                let count = length / DESCRIPTOR_SIZE;
                if count == 0 || length % DESCRIPTOR_SIZE != 0 {
                    return Err(ChainError::IndirectLength { length });
                }
                size = u16::try_from(count).map_err(|_| ChainError::TooLong { limit: MAX_CHAIN_SEGMENTS })?;
                (table, index, indirect) = (GuestAddress(address), 0, true);
                continue;
            }
            let write = descriptor.flags & VRING_DESC_F_WRITE != 0;
            if wrote && !write {
                return Err(ChainError::Order);
            }
            wrote = write;
            each(descriptor)?;
            if descriptor.flags & VRING_DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::TooLong { limit: MAX_CHAIN_SEGMENTS })
    }

    fn read(&self, table: GuestAddress, size: u16, index: u16) -> Result<Descriptor, ChainError> {
        if index >= size {
            return Err(ChainError::Index { index, size });
        }
        let fault =
            ChainError::Memory { address: table.raw_value(), length: u32::from(size) * DESCRIPTOR_SIZE };
        let Some(address) = table.checked_add(u64::from(index) * u64::from(DESCRIPTOR_SIZE)) else {
            return Err(fault);
        };
        let raw: [u8; 16] = self.memory.read_obj(address).map_err(|_| fault)?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
        Ok(Descriptor {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u32::from(u16::from_le_bytes([f0, f1])),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}
