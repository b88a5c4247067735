//! The driver's side of a split virtqueue (virtio 1.3, section 2.7).

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

use crate::virtio::Memory;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A piece of guest memory to put into a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it lies.
    pub address: u64,
    /// Its bytes.
    pub length: u32,
    /// The device writes it.
    pub write: bool,
}

/// One virtqueue.
pub struct DriverQueue {
    memory: Memory,
    base: u64,
    size: u16,
    event_idx: bool,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    added: u16,
    kicked: u16,
    seen_used: u16,
}

impl DriverQueue {
    /// Lays a queue out at `base`, which is aligned to 16; the memory there is zero.
    pub fn new(memory: Memory, base: u64, size: u16, event_idx: bool) -> Self {
        let free = (0..size).rev().collect();
        let chains = HashMap::new();
        Self { memory, base, size, event_idx, free, chains, added: 0, kicked: 0, seen_used: 0 }
    }

    /// Bytes a queue of this size takes, rounded up to pages.
    pub fn bytes(size: u16) -> u64 {
        (u64::from(size) * 26 + 64).next_multiple_of(4096)
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the descriptor table lies.
    pub fn descriptors(&self) -> u64 {
        self.base
    }

    /// Where the available ring lies.
    pub fn available(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    /// Where the used ring lies.
    pub fn used(&self) -> u64 {
        (self.available() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// Descriptors that are in no chain.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Writes descriptor `index` of the table at `table`, as raw as it comes.
    pub fn write_descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&raw, GuestAddress(table + 16 * u64::from(index))).expect("in memory");
    }

    /// Makes a chain of the pieces and offers it; `None` without enough free descriptors.
    pub fn add(&mut self, pieces: &[Piece]) -> Option<u16> {
        if pieces.is_empty() || self.free.len() < pieces.len() {
            return None;
        }
        let indices: Vec<u16> = (0..pieces.len()).filter_map(|_| self.free.pop()).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let next = indices.get(at + 1).copied();
            let flags = if piece.write { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
            let next = next.unwrap_or(0);
            self.write_descriptor(self.base, indices[at], piece.address, piece.length, flags, next);
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.offer(head);
        Some(head)
    }

    /// As [`add`](Self::add), with the descriptors in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, pieces: &[Piece]) -> Option<u16> {
        let head = self.free.pop()?;
        for (at, piece) in pieces.iter().enumerate() {
            let at = u16::try_from(at).ok()?;
            let last = usize::from(at) + 1 == pieces.len();
            let flags = if piece.write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.write_descriptor(table, at, piece.address, piece.length, flags, at + 1);
        }
        let bytes = u32::try_from(16 * pieces.len()).ok()?;
        self.write_descriptor(self.base, head, table, bytes, INDIRECT, 0);
        self.chains.insert(head, vec![head]);
        self.offer(head);
        Some(head)
    }

    /// Offers a head, whatever it leads to.
    pub fn offer(&mut self, head: u16) {
        let slot = self.available() + 4 + 2 * u64::from(self.added % self.size);
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).expect("in memory");
        self.added = self.added.wrapping_add(1);
        self.store_u16(self.available() + 2, self.added, Ordering::Release);
    }

    /// Whether the device wants to hear of what was offered since this was last asked.
    pub fn kick_wanted(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (new, old) = (self.added, std::mem::replace(&mut self.kicked, self.added));
        if new == old {
            return false;
        }
        if self.event_idx {
            let event = self.load_u16(self.used() + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.load_u16(self.used()) & 1 == 0
        }
    }

    /// Takes a chain the device has used: its head and the bytes written.
    pub fn pop_used(&mut self) -> Option<(u16, u32)> {
        let used: u16 =
            self.memory.load(GuestAddress(self.used() + 2), Ordering::Acquire).expect("in memory");
        if u16::from_le(used) == self.seen_used {
            return None;
        }
        let entry = self.used() + 4 + 8 * u64::from(self.seen_used % self.size);
        let raw: [u8; 8] = self.memory.read_obj(GuestAddress(entry)).expect("in memory");
        let head = u16::from_le_bytes([raw[0], raw[1]]);
        let written = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
        self.seen_used = self.seen_used.wrapping_add(1);
        if let Some(indices) = self.chains.remove(&head) {
            self.free.extend(indices);
        }
        Some((head, written))
    }

    /// Asks for an interrupt at the next used chain. True: there is one already.
    pub fn want_interrupt(&mut self) -> bool {
        if self.event_idx {
            self.store_u16(
                self.available() + 4 + 2 * u64::from(self.size),
                self.seen_used,
                Ordering::Relaxed,
            );
        } else {
            self.store_u16(self.available(), 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.load_u16(self.used() + 2) != self.seen_used
    }

    /// Asks for no interrupts, as far as that can be said.
    pub fn suppress_interrupts(&mut self) {
        if !self.event_idx {
            self.store_u16(self.available(), 1, Ordering::Relaxed);
        }
    }

    fn store_u16(&self, address: u64, value: u16, order: Ordering) {
        self.memory.store(value.to_le(), GuestAddress(address), order).expect("in memory");
    }

    fn load_u16(&self, address: u64) -> u16 {
        u16::from_le(self.memory.load(GuestAddress(address), Ordering::Relaxed).expect("in memory"))
    }
}
