//! Bytes as a hostile guest of a device in its place in a machine: its registers, its queues, its doorbells.
//!
//! The bytes are a program of writes: to registers in any order, to guest memory, to descriptors. Nothing may panic or
//! hang, what is handed on was agreed on, and whatever was done, a driver that then begins anew is served.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::queue::{DriverQueue, Piece};
use crate::hypervisor::Edge;
use crate::machine::bus::MmioDevice;
use crate::machine::network;
use crate::machine::slot::{Make, Slot, alone};
use crate::virtio::blk::{self, Blk, Disk};
use crate::virtio::mmio::{Event, Registers};
use crate::virtio::net::{self, Address, Link};
use crate::virtio::rng::{self, Rng};
use crate::virtio::{Device, Memory};

const MAX_STEPS: usize = 400;
const MEMORY: u64 = 1 << 20;
const RING: u16 = 16;
/// Where the program's queue lies, and what its descriptors mostly name.
const QUEUE: u64 = 0x1000;
const BUFFERS: u64 = 0x8000;
const SECTORS: u64 = 16;
/// Far more than any answer takes: who waits so long waits for ever.
const PATIENCE: Duration = Duration::from_secs(4);

/// Registers that matter, more often than others (virtio 1.3, 4.2.2).
const REGISTERS: [u64; 16] = [
    0x014, 0x020, 0x024, 0x030, 0x038, 0x044, 0x050, 0x064, 0x070, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4,
    0x100,
];
/// Values that do something there: bits of the status, features, sizes, queues.
const VALUES: [u64; 8] = [0, 1, 3, 11, 15, RING as u64, 1 << 29, 1 << 9];

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes([self.byte()?, self.byte()?, self.byte()?, self.byte()?]))
    }

    /// A register, how wide it is written, and what.
    fn write(&mut self) -> Option<(u64, u8, u64)> {
        let (which, how) = (self.byte()?, self.byte()?);
        let offset = match which {
            0..240 => REGISTERS[usize::from(which % 16)],
            _ => u64::from(self.u32()? % 0x200),
        };
        let size = if how < 240 { 4 } else { 1 << (how % 4) };
        let value = match self.byte()? {
            choice @ 0..200 => VALUES[usize::from(choice % 8)],
            200.. => u64::from(self.u32()?),
        };
        Some((offset, size, value))
    }
}

/// One program for the registers alone.
pub fn registers(bytes: &[u8]) {
    let device = Rng::default();
    let mut registers = Registers::new(rng::DEVICE_ID, &device);
    let (mut input, mut running) = (Input(bytes), false);
    while let Some((offset, size, value)) = input.write() {
        match registers.write(offset, size, value) {
            Some(Event::Start { features, queues }) => {
                assert!(!running, "started twice");
                assert_eq!(features & !device.features(), 0, "features that were not offered");
                assert!(queues.iter().all(|(index, _)| *index < device.ring_sizes().len()));
                running = true;
            }
            Some(Event::Notify(index) | Event::Stop(index)) => {
                assert!(running && index < device.ring_sizes().len(), "news of a queue that is not live");
            }
            Some(Event::Reset) => {
                running = false;
                assert_eq!(registers.read(0x070, 4), 0, "a reset leaves a status");
            }
            None => (),
        }
        registers.read(offset, size);
    }
}

struct Pulses(Sender<()>);

impl Edge for Pulses {
    fn pulse(&self) {
        let _ = self.0.send(());
    }
}

/// What the program is a guest of.
enum Fuzzed {
    Disk(tempfile::NamedTempFile),
    Random,
    /// The network at its other end, where frames are sent from, and where they come to.
    Receiver(UnixStream),
    Sender(UnixStream),
}

impl Fuzzed {
    /// By the program's first byte.
    fn new(flags: u8) -> (Self, u32, Make) {
        match flags & 3 {
            0 => {
                let file = image(SECTORS);
                let disk = Disk::open(file.path(), flags & 0x10 != 0).expect("a disk");
                (Self::Disk(file), blk::DEVICE_ID, alone(|| Ok(Blk::new(Arc::new(disk)))))
            }
            1 => (Self::Random, rng::DEVICE_ID, alone(|| Ok(Rng::default()))),
            way => {
                let (near, far) = UnixStream::pair().expect("a pair");
                far.set_nonblocking(true).expect("a socket");
                let make = network::make_over(near, Address::of(b"fuzzed"), 1500);
                let ends: fn(UnixStream) -> Self = if way == 2 { Self::Receiver } else { Self::Sender };
                (ends(far), net::DEVICE_ID, make)
            }
        }
    }

    /// The queue that the program writes to.
    fn queue(&self) -> u32 {
        u32::from(matches!(self, Self::Sender(_)))
    }

    /// What the other side does now and then. It never sends what is no frame: that would end the link.
    fn act(&self) {
        match self {
            Self::Receiver(far) => {
                let mut far: &UnixStream = far;
                let frame = [&Link::prefix(60)[..], &[7; 60]].concat();
                if let Ok(sent) = far.write(&frame) {
                    assert_eq!(sent, frame.len(), "half a frame: the kernel takes so few bytes or none");
                }
            }
            Self::Sender(far) => drop((&*far).read(&mut [0; 4096])),
            Self::Disk(_) | Self::Random => {}
        }
    }
}

/// One program for a device on its own thread.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let flags = input.byte().unwrap_or(0);
    let (fuzzed, kind, make) = Fuzzed::new(flags);
    let memory: Memory = Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(MEMORY).expect("a small memory"))])
            .expect("memory"),
    );
    let (sender, pulses) = mpsc::channel();
    let slot =
        Slot::new("fuzzed", kind, make, Arc::clone(&memory), Box::new(Pulses(sender))).expect("a slot");

    let mut queue = DriverQueue::new(Arc::clone(&memory), QUEUE, RING, flags & 4 != 0);
    if flags & 8 != 0 {
        set_up(&slot, &queue, fuzzed.queue(), if flags & 4 != 0 { 1 << 29 } else { 0 });
    }
    for _ in 0..MAX_STEPS {
        if step(&mut input, &slot, &mut queue, &fuzzed, &memory).is_none() {
            break;
        }
    }

    revive(&slot, &memory, &pulses, &fuzzed);
    drop(slot);
    if let Fuzzed::Disk(file) = fuzzed {
        let bytes = file.as_file().metadata().expect("its size").len();
        assert_eq!(bytes, SECTORS * 512, "the disk has another size");
    }
}

fn step(
    input: &mut Input<'_>,
    slot: &Slot,
    queue: &mut DriverQueue,
    fuzzed: &Fuzzed,
    memory: &Memory,
) -> Option<()> {
    match input.byte()? % 8 {
        0..=2 => {
            let (offset, size, value) = input.write()?;
            slot.write(offset, size, value);
            slot.read(offset, size);
        }
        // A doorbell rings whatever the device's state is.
        3 => {
            fuzzed.act();
            slot.bells().iter().for_each(crate::io::Bell::ring);
        }
        // Memory, the queue mostly.
        4 => {
            let span = if input.byte()? < 200 { 0x400 } else { MEMORY - QUEUE - 4 };
            let at = QUEUE + u64::from(input.u32()?) % span;
            memory.write_obj(input.u32()?, GuestAddress(at)).expect("in memory");
        }
        // A descriptor, and perhaps its chain.
        5 | 6 => {
            let (index, next, flags) = (input.byte()?, input.byte()?, input.byte()?);
            let length = if input.byte()? < 200 { u32::from(input.byte()?) * 16 } else { input.u32()? };
            let address = match input.byte()? {
                at @ 0..200 => BUFFERS + u64::from(at) * 256,
                200..220 => QUEUE + u64::from(input.byte()?),
                220.. => u64::MAX - u64::from(input.byte()?),
            };
            let index = u16::from(index) % RING;
            let flags_bits = u16::from(flags & 7);
            queue.write_descriptor(QUEUE, index, address, length, flags_bits, u16::from(next) % (RING + 1));
            if flags & 0x80 != 0 {
                queue.offer(index);
                slot.write(0x050, 4, fuzzed.queue().into());
            }
        }
        // A request that a disk can do something with.
        _ => {
            let kind = [0, 1, 4, 8, 11, 13, 2, 99][usize::from(input.byte()? % 8)];
            let mut header = [0; 32];
            header[..4].copy_from_slice(&u32::to_le_bytes(kind));
            header[8..12].copy_from_slice(&(input.u32()? % 20).to_le_bytes());
            header[16] = input.byte()? % 20;
            header[24] = input.byte()? % 20;
            memory.write_slice(&header, GuestAddress(BUFFERS)).expect("in memory");
            let data = u32::from(input.byte()? % 4) * 512;
            queue.write_descriptor(QUEUE, 0, BUFFERS, if kind > 8 { 32 } else { 16 }, 1, 1);
            queue.write_descriptor(QUEUE, 1, BUFFERS + 4096, data, 1 | if kind == 1 { 0 } else { 2 }, 2);
            queue.write_descriptor(QUEUE, 2, BUFFERS + 8192, 1, 2, 0);
            queue.offer(0);
            slot.write(0x050, 4, fuzzed.queue().into());
        }
    }
    Some(())
}

/// Begins anew as a driver does, and has the device do something.
fn revive(slot: &Slot, memory: &Memory, pulses: &Receiver<()>, fuzzed: &Fuzzed) {
    slot.write(0x070, 4, 0);
    assert_eq!(slot.read(0x070, 4), 0, "a reset leaves a status");
    // From here on the device has let go of the memory.
    memory.write_slice(&[0; 0x1000], GuestAddress(QUEUE)).expect("in memory");
    while pulses.try_recv().is_ok() {}
    if let Fuzzed::Sender(far) = fuzzed {
        // What the device keeps then is less than the socket takes.
        while matches!((&*far).read(&mut [0; 4096]), Ok(1..)) {}
    }
    fuzzed.act();
    let mut queue = DriverQueue::new(Arc::clone(memory), QUEUE, RING, false);
    set_up(slot, &queue, fuzzed.queue(), 0);
    memory.write_slice(&[0; 17], GuestAddress(BUFFERS)).expect("in memory");
    let header = Piece { address: BUFFERS, length: 16, write: false };
    let (data, frame) = (Piece { address: BUFFERS + 4096, length: 513, write: true }, 12 + 60);
    let (pieces, written) = match fuzzed {
        Fuzzed::Disk(_) => (vec![header, data], 513),
        Fuzzed::Random => (vec![data], 513),
        Fuzzed::Receiver(_) => (vec![data], frame),
        Fuzzed::Sender(_) => (vec![Piece { length: frame, ..header }], 0),
    };
    queue.add(&pieces).expect("room");
    slot.write(0x050, 4, fuzzed.queue().into());
    pulses.recv_timeout(PATIENCE).expect("the device never answered");
    assert_eq!(queue.pop_used(), Some((0, written)), "the device did not do what was asked");
    assert_eq!(queue.pop_used(), None, "the device answered what nobody asked");
}

fn set_up(slot: &Slot, queue: &DriverQueue, index: u32, features: u32) {
    for (offset, value) in [
        (0x070, 1),
        (0x070, 3),
        (0x024, 1),
        (0x020, 1),
        (0x024, 0),
        (0x020, u64::from(features)),
        (0x070, 11),
        (0x030, u64::from(index)),
        (0x038, u64::from(RING)),
        (0x080, queue.descriptors()),
        (0x090, queue.available()),
        (0x0a0, queue.used()),
        (0x044, 1),
        (0x070, 15),
    ] {
        slot.write(offset, 4, value);
    }
}

fn image(sectors: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let mut to: &File = file.as_file();
    let bytes = vec![7; usize::try_from(sectors * 512).expect("a small file")];
    to.write_all(&bytes).expect("room for a small file");
    file
}
