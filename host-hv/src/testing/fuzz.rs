//! Bytes as a hostile guest, and as a host that does what it likes.
//!
//! The bytes are a program: each step writes guest memory, descriptors or whole packets, moves the host's ends of
//! streams, passes time or resets the device. Nothing may panic, the device must come to rest after every step, and
//! what it keeps must stay within its limits.

use std::io::IoSlice;
use std::net::Shutdown;

use vm_memory::{Bytes, GuestAddress};

use super::driver::{Layout, Shape};
use super::guest::{Guest, read_all};
use crate::io::PipeEnd;
use crate::virtio::Device;
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::spec::{HEADER_SIZE, Op};
use crate::virtio::vsock::{CLOSE_TIMEOUT, HANDSHAKE_TIMEOUT, Limits};

const CONNECTIONS: usize = 4;
const BUFFER: u32 = 8192;
const MAX_STEPS: usize = 400;

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from(self.u16()?) | u32::from(self.u16()?) << 16)
    }

    /// Mostly small, sometimes anything.
    fn length(&mut self) -> Option<u32> {
        let kind = self.byte()?;
        if kind < 200 { Some(u32::from(kind)) } else { self.u32() }
    }
}

/// Runs one program.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let flags = input.byte().unwrap_or(0);
    let shape = match flags >> 1 & 3 {
        0 => Shape::Linear,
        1 => Shape::Split,
        2 => Shape::Pieces(vec![1, 50, 7]),
        _ => Shape::Indirect(vec![44, 3, 100]),
    };
    let layout = Layout {
        ring: 32,
        rx_buffers: 8,
        rx_bytes: 256,
        tx_buffers: 8,
        tx_bytes: 4096,
        rx_shape: shape.clone(),
        tx_shape: shape,
        event_idx: flags & 1 != 0,
    };
    let limits = Limits { connections: CONNECTIONS, buffer: BUFFER };
    let memory_size = layout.memory() * 2;
    let mut guest = Guest::with_limits(layout, limits);
    guest.listen(1);
    let mut pipes = Vec::new();
    for _ in 0..MAX_STEPS {
        if step(&mut input, &mut guest, &mut pipes, memory_size).is_none() {
            break;
        }
        guest.work_blindly();
        assert!(guest.device.streams() <= CONNECTIONS, "more streams than allowed");
        assert!(guest.device.buffered() <= CONNECTIONS * BUFFER as usize, "more bytes than promised");
        while let Some(pipe) = guest.accept(1) {
            pipes.push(pipe);
        }
    }
    // However it went, a reset leaves nothing.
    guest.device.reset();
    assert_eq!(guest.device.streams(), 0);
    assert!(guest.device.deadline().is_none(), "something ticks after a reset");
}

fn step(input: &mut Input<'_>, guest: &mut Guest, pipes: &mut Vec<PipeEnd>, memory: u64) -> Option<()> {
    let pick =
        |pipes: &mut Vec<PipeEnd>, choice: u8| (!pipes.is_empty()).then(|| usize::from(choice) % pipes.len());
    match input.byte()? % 16 {
        // Raw memory, the rings included.
        0 => {
            let at = u64::from(input.u32()?) % memory;
            let value = input.u32()?;
            drop(guest.driver.memory().write_obj(value, GuestAddress(at)));
        }
        // A raw descriptor, and perhaps its head.
        1 | 2 => {
            let ring = usize::from(input.byte()?) % 3;
            let (index, next) = (u16::from(input.byte()? % 32), u16::from(input.byte()?));
            let address = if input.byte()? < 240 { u64::from(input.u32()?) % memory } else { u64::MAX - 20 };
            let (length, flags) = (input.length()?, u16::from(input.byte()?));
            let queue = &mut guest.driver.queues[ring];
            queue.write_descriptor(queue.descriptors(), index, address, length, flags, next);
            if flags & 0x80 != 0 {
                queue.offer(index);
            }
        }
        3 => {
            let ring = usize::from(input.byte()?) % 3;
            guest.driver.queues[ring].offer(u16::from(input.byte()?));
        }
        // A packet, mostly from and to ports that mean something.
        4..=8 => {
            let (guest_port, host_port) = (u32::from(input.byte()? % 4), u32::from(input.byte()? % 3));
            let op = Op::from(u16::from(input.byte()? % 9));
            let mut header = guest.driver.header(guest_port, host_port, op);
            if host_port == 2 {
                // What the device hands out to clients of the host.
                header.dst_port = (1 << 30) + u32::from(input.byte()? % 8);
            }
            header.flags = u32::from(input.byte()? % 4);
            header.len = input.length()?;
            if input.byte()? < 64 {
                header.buf_alloc = input.u32()?;
                header.fwd_cnt = input.u32()?;
                header.kind = u16::from(input.byte()? % 3);
            }
            let payload = vec![0xa5; (header.len as usize).min(4096 - HEADER_SIZE)];
            let lie = input.byte()? < 16;
            let len = u32::try_from(payload.len()).ok()?;
            let header = if lie { header } else { Header { len, ..header } };
            guest.driver.send_blindly(&header, &payload);
        }
        9 => guest.driver.offer_some_buffers(usize::from(input.byte()? % 9)),
        10 => {
            if let Ok(pipe) = guest.connect(u32::from(input.byte()? % 4)) {
                pipes.push(pipe);
            }
        }
        11 => {
            let (choice, count) = (input.byte()?, usize::from(input.u16()?));
            if let Some(at) = pick(pipes, choice) {
                pipes[at].write_bytes(&[IoSlice::new(&vec![0x3c; count])]);
            }
        }
        12 => {
            let choice = input.byte()?;
            if let Some(at) = pick(pipes, choice) {
                read_all(&mut pipes[at]);
            }
        }
        13 => {
            let (choice, how) = (input.byte()?, input.byte()?);
            if let Some(at) = pick(pipes, choice) {
                match how % 3 {
                    0 => pipes[at].shutdown(Shutdown::Write),
                    1 => pipes[at].shutdown(Shutdown::Read),
                    _ => drop(pipes.swap_remove(at)),
                }
            }
        }
        14 => guest.pass(if input.byte()? < 128 { HANDSHAKE_TIMEOUT } else { CLOSE_TIMEOUT }),
        _ => {
            if input.byte()? < 200 {
                guest.device.transport_reset();
            } else {
                let rings: Vec<_> = (0..3).map(|index| guest.device.stop_ring(index)).collect();
                drop(rings);
            }
        }
    }
    Some(())
}
