//! A vsock driver: buffers, packets, and nothing it would be wrong to do.

use std::collections::HashMap;

use vm_memory::{Bytes, GuestAddress};

use super::queue::{DriverQueue, Piece};
use crate::virtio::Memory;
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::spec::{HEADER_SIZE, HOST_CID, Op, TYPE_STREAM};

/// How a packet or a receive buffer lies in memory.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Header and payload in one descriptor.
    Linear,
    /// A descriptor each.
    Split,
    /// Descriptors of these lengths, over and over.
    Pieces(Vec<u32>),
    /// The same in an indirect table.
    Indirect(Vec<u32>),
}

/// Sizes of a driver.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Entries of each ring.
    pub ring: u16,
    /// Receive buffers offered.
    pub rx_buffers: u16,
    /// Bytes of one receive buffer, header included; Linux gives a page less its bookkeeping.
    pub rx_bytes: u32,
    /// Transmit buffers.
    pub tx_buffers: u16,
    /// The most payload of one packet; Linux sends up to 64 KiB.
    pub tx_bytes: u32,
    /// How receive buffers lie in memory.
    pub rx_shape: Shape,
    /// How packets lie in memory.
    pub tx_shape: Shape,
    /// `VIRTIO_RING_F_EVENT_IDX` is negotiated.
    pub event_idx: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            ring: 128,
            rx_buffers: 128,
            rx_bytes: 3776,
            tx_buffers: 64,
            tx_bytes: 65536,
            rx_shape: Shape::Linear,
            tx_shape: Shape::Split,
            event_idx: true,
        }
    }
}

/// Room for an indirect table beside each buffer.
const TABLE_BYTES: u64 = 16 * 1024;

impl Layout {
    fn rx_stride(&self) -> u64 {
        u64::from(self.rx_bytes).next_multiple_of(4096) + TABLE_BYTES
    }

    fn tx_stride(&self) -> u64 {
        (u64::from(self.tx_bytes) + HEADER_SIZE as u64).next_multiple_of(4096) + TABLE_BYTES
    }

    fn rx_start(&self) -> u64 {
        3 * DriverQueue::bytes(self.ring)
    }

    fn tx_start(&self) -> u64 {
        self.rx_start() + u64::from(self.rx_buffers) * self.rx_stride()
    }

    /// Bytes of guest memory it takes, from address 0.
    pub fn memory(&self) -> u64 {
        self.tx_start() + u64::from(self.tx_buffers) * self.tx_stride()
    }
}

/// The driver.
pub struct Driver {
    layout: Layout,
    memory: Memory,
    /// Receive, transmit and event queue.
    pub queues: [DriverQueue; 3],
    rx_heads: HashMap<u16, u16>,
    rx_idle: Vec<u16>,
    tx_heads: HashMap<u16, u16>,
    tx_idle: Vec<u16>,
    /// The guest's cid.
    pub cid: u64,
}

impl Driver {
    /// Prepares the queues in `memory`, with no receive buffer offered yet.
    pub fn new(layout: Layout, memory: Memory, cid: u64) -> Self {
        let step = DriverQueue::bytes(layout.ring);
        let queue = |at: u64| DriverQueue::new(memory.clone(), at * step, layout.ring, layout.event_idx);
        let queues = [queue(0), queue(1), queue(2)];
        let rx_idle = (0..layout.rx_buffers).rev().collect();
        let tx_idle = (0..layout.tx_buffers).rev().collect();
        let (rx_heads, tx_heads) = (HashMap::new(), HashMap::new());
        Self { layout, memory, queues, rx_heads, rx_idle, tx_heads, tx_idle, cid }
    }

    /// Guest memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Offers every idle receive buffer.
    pub fn offer_buffers(&mut self) {
        self.offer_some_buffers(usize::MAX);
    }

    /// Offers up to `count` idle receive buffers.
    pub fn offer_some_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let Some(buffer) = self.rx_idle.pop() else { break };
            let address = self.rx_address(buffer);
            let length = self.layout.rx_bytes;
            let table = address + self.layout.rx_stride() - TABLE_BYTES;
            let pieces = pieces(&self.layout.rx_shape, address, length, true);
            let head = match self.layout.rx_shape {
                Shape::Indirect(_) => self.queues[0].add_indirect(table, &pieces),
                _ => self.queues[0].add(&pieces),
            };
            let Some(head) = head else {
                self.rx_idle.push(buffer);
                break;
            };
            self.rx_heads.insert(head, buffer);
        }
    }

    /// Takes the next packet; its buffer is idle afterwards. An empty used buffer counts as none.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            let (head, written) = self.queues[0].pop_used()?;
            let buffer = self.rx_heads.remove(&head).expect("a buffer the driver offered");
            self.rx_idle.push(buffer);
            if written == 0 {
                continue;
            }
            let mut bytes = vec![0; written as usize];
            self.memory.read_slice(&mut bytes, GuestAddress(self.rx_address(buffer))).expect("in memory");
            let raw = bytes.first_chunk().expect("a header");
            let header = Header::decode(raw);
            let payload = bytes.split_off(HEADER_SIZE);
            assert_eq!(header.len as usize, payload.len(), "used length and header agree: {header:?}");
            return Some((header, payload));
        }
    }

    /// Buffers the device has and could fill.
    pub fn buffers_offered(&self) -> usize {
        self.rx_heads.len()
    }

    /// Takes back transmit buffers the device has used.
    pub fn reap(&mut self) {
        while let Some((head, _)) = self.queues[1].pop_used() {
            let buffer = self.tx_heads.remove(&head).expect("a packet the driver sent");
            self.tx_idle.push(buffer);
        }
    }

    /// Sends a packet. False: no buffer or descriptor is free.
    pub fn send(&mut self, header: &Header, payload: &[u8]) -> bool {
        self.reap();
        self.send_from_idle(header, payload)
    }

    fn send_from_idle(&mut self, header: &Header, payload: &[u8]) -> bool {
        let Some(buffer) = self.tx_idle.pop() else { return false };
        let address = self.layout.tx_start() + u64::from(buffer) * self.layout.tx_stride();
        self.memory.write_slice(&header.encode(), GuestAddress(address)).expect("in memory");
        let at = GuestAddress(address + HEADER_SIZE as u64);
        self.memory.write_slice(payload, at).expect("in memory");
        let length = u32::try_from(HEADER_SIZE + payload.len()).expect("a packet");
        let table = address + self.layout.tx_stride() - TABLE_BYTES;
        let pieces = pieces(&self.layout.tx_shape, address, length, false);
        let head = match self.layout.tx_shape {
            Shape::Indirect(_) => self.queues[1].add_indirect(table, &pieces),
            _ => self.queues[1].add(&pieces),
        };
        let Some(head) = head else {
            self.tx_idle.push(buffer);
            return false;
        };
        self.tx_heads.insert(head, buffer);
        true
    }

    /// As [`send`](Self::send), over whatever the buffer held, and with no accounts kept.
    pub fn send_blindly(&mut self, header: &Header, payload: &[u8]) {
        self.tx_heads.clear();
        self.tx_idle = vec![self.layout.tx_buffers - 1];
        self.send_from_idle(header, payload);
    }

    /// Counts all receive buffers as idle, whoever has them.
    pub fn forget_buffers(&mut self) {
        self.rx_heads.clear();
        self.rx_idle = (0..self.layout.rx_buffers).rev().collect();
    }

    /// A header from this guest to the host, with a window of 256 KiB of which nothing is used.
    pub fn header(&self, guest_port: u32, host_port: u32, op: Op) -> Header {
        Header {
            src_cid: self.cid,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 256 * 1024,
            fwd_cnt: 0,
        }
    }

    fn rx_address(&self, buffer: u16) -> u64 {
        self.layout.rx_start() + u64::from(buffer) * self.layout.rx_stride()
    }
}

fn pieces(shape: &Shape, address: u64, length: u32, write: bool) -> Vec<Piece> {
    let header = u32::try_from(HEADER_SIZE).expect("44");
    let lengths: Vec<u32> = match shape {
        Shape::Linear => vec![length],
        Shape::Split if length > header => vec![header, length - header],
        Shape::Split => vec![length],
        Shape::Pieces(lengths) | Shape::Indirect(lengths) => lengths.clone(),
    };
    let mut pieces = Vec::new();
    let (mut at, mut left) = (address, length);
    for length in lengths.into_iter().cycle() {
        let length = length.min(left);
        pieces.push(Piece { address: at, length, write });
        at += u64::from(length);
        left -= length;
        if left == 0 {
            break;
        }
    }
    pieces
}
