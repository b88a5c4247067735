//! The device: a queue of room for frames, and one of frames to be sent.

use std::fmt;
use std::str::FromStr;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::VolatileSlice;

use super::Link;
use super::link::{FRAME_MAX, FRAME_MIN};
use crate::io::IoBuf;
use crate::virtio::{Device, Memory, Ring, RingError};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const RING_SIZES: [u16; 2] = [256, 256];

/// Bytes of what goes before each frame on a queue (5.1.6). All of it is zero: nothing is left to the other side to do.
const HEADER_LEN: usize = 12;
/// How many queue entries a received frame lies in, which is the header's last field.
const HEADER: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Bytes of the configuration space: address, status, pairs of queues, MTU (5.1.4).
const CONFIG_LEN: usize = 12;

/// Frames that go in one call, and after how many bytes, or pieces, no more of them.
const BATCH_FRAMES: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_PIECES: usize = 512;
/// The most pieces of a frame. A call takes 1024 in all.
const FRAME_PIECES: usize = 500;
/// Calls before somebody else has a turn; each of 64 frames at most.
const BUDGET: usize = 8;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub [u8; 6]);

impl Address {
    /// One for a guest that was given none: the same each time for the same words, another for others.
    #[must_use]
    pub fn of(words: &[u8]) -> Self {
        // FNV-1a.
        let hash = words.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [_, a, b, c, d, e, _, _] = hash.to_le_bytes();
        // Made here, and one machine's.
        Self([0x02, a, b, c, d, e])
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
        let bytes: Result<Vec<u8>, _> = parts.into_iter().collect();
        let wrong = || format!("\"{text}\" is no Ethernet address of one machine, such as 02:00:00:00:00:01");
        let bytes: [u8; 6] = bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)?;
        // The lowest bit is a group's.
        if bytes[0] & 1 != 0 || bytes == [0; 6] { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

/// A network device for one guest.
pub struct Net {
    link: Link,
    config: [u8; CONFIG_LEN],
    memory: Option<Memory>,
    rings: [Option<Ring>; 2],
    /// There was no room for a frame: wait for the guest to make some.
    starved: bool,
    /// There may be frames to send.
    transmitting: bool,
}

impl Net {
    /// One with this address, whose frames carry packets of `mtu` bytes at most.
    #[must_use]
    pub fn new(link: Link, address: Address, mtu: u16) -> Self {
        let mut config = [0; CONFIG_LEN];
        config[..6].copy_from_slice(&address.0);
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        Self { link, config, memory: None, rings: [None, None], starved: false, transmitting: false }
    }

    /// The link's stream has news.
    pub fn link_ready(&mut self, readable: bool, writable: bool) {
        self.link.ready(readable, writable);
    }

    /// Sends what the guest gave. True: there is more, and it can be sent.
    fn transmit(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let Some(ring) = &mut self.rings[TRANSMIT] else { return Ok(false) };
        for _ in 0..BUDGET {
            // While the other side does not take what it was given, the guest's frames wait in its own memory.
            if !self.link.is_clear() {
                return Ok(false);
            }
            let mut prefixes = [[0; 4]; BATCH_FRAMES];
            let (mut heads, mut pieces) = (Vec::new(), Vec::new());
            let (mut bytes, mut empty) = (0, false);
            for prefix in &mut prefixes {
                if bytes >= BATCH_BYTES || pieces.len() >= BATCH_PIECES {
                    break;
                }
                let Some(head) = ring.pop(memory)? else {
                    empty = true;
                    break;
                };
                heads.push(head);
                let start = pieces.len();
                let len = ring.descriptors(memory).readable(head, &mut pieces).unwrap_or_else(|fault| {
                    tracing::warn!(%fault, "A frame of the guest's is dropped");
                    0
                });
                // Of the header nothing is asked.
                let len = len.saturating_sub(HEADER_LEN);
                if !(FRAME_MIN..=FRAME_MAX).contains(&len) || pieces.len() - start > FRAME_PIECES {
                    pieces.truncate(start);
                    continue;
                }
                skip(&mut pieces[start..], HEADER_LEN);
                *prefix = Link::prefix(len);
                pieces.insert(start, IoBuf::from(VolatileSlice::from(&mut prefix[..])));
                bytes += len;
            }
            if !pieces.is_empty() {
                self.link.send(&pieces);
            }
            for head in heads {
                ring.complete(memory, head, 0)?;
            }
            ring.notify(memory)?;
            if empty && !ring.enable_kicks(memory)? {
                self.transmitting = false;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives the guest what came. True: there is more, and there may be room.
    fn receive(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let Some(ring) = &mut self.rings[RECEIVE] else { return Ok(false) };
        let mut pieces = Vec::new();
        for _ in 0..BUDGET * BATCH_FRAMES {
            let Some(frame) = self.link.frame() else {
                ring.notify(memory)?;
                return Ok(false);
            };
            let Some(head) = ring.pop(memory)? else {
                ring.notify(memory)?;
                if ring.enable_kicks(memory)? {
                    continue;
                }
                self.starved = true;
                return Ok(false);
            };
            pieces.clear();
            match ring.descriptors(memory).writable(head, &mut pieces) {
                Ok(room) if room >= HEADER_LEN + frame.len() => {
                    scatter(&pieces, &[&HEADER, frame]);
                    ring.complete(memory, head, HEADER_LEN + frame.len())?;
                    self.link.taken();
                }
                Ok(room) => {
                    tracing::debug!(room, frame = frame.len(), "A frame is too long for the guest");
                    ring.unpop(1);
                    self.link.taken();
                }
                Err(fault) => {
                    tracing::warn!(%fault, "The guest's room for a frame is none");
                    ring.complete(memory, head, 0)?;
                }
            }
        }
        ring.notify(memory)?;
        Ok(true)
    }

    /// A ring that cannot be believed is left alone until the driver resets the device.
    fn check(&mut self, index: usize, result: Result<bool, RingError>) -> bool {
        result.unwrap_or_else(|error| {
            tracing::error!(ring = index, %error, "The guest's network is out of use until a reset");
            self.rings[index] = None;
            false
        })
    }
}

impl Device for Net {
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MTU
    }

    fn ack_features(&mut self, _features: u64) {}

    fn ring_sizes(&self) -> &[u16] {
        &RING_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn set_memory(&mut self, memory: Memory) {
        for ring in &mut self.rings {
            *ring = ring.take().filter(|ring| ring.is_valid(&memory));
        }
        self.memory = Some(memory);
    }

    fn start_ring(&mut self, index: usize, ring: Ring) {
        let valid = self.memory.as_ref().is_some_and(|memory| ring.is_valid(memory));
        if let Some(place) = self.rings.get_mut(index) {
            *place = valid.then_some(ring);
        }
        self.kick(index);
    }

    fn stop_ring(&mut self, index: usize) -> Option<Queue> {
        self.rings.get_mut(index)?.take().map(Ring::into_queue)
    }

    fn kick(&mut self, index: usize) {
        match index {
            RECEIVE => self.starved = false,
            _ => self.transmitting = true,
        }
    }

    fn run(&mut self) -> bool {
        let Some(memory) = self.memory.clone() else { return false };
        let mut more = false;
        if self.transmitting {
            let result = self.transmit(&memory);
            more |= self.check(TRANSMIT, result);
        }
        if !self.starved {
            let result = self.receive(&memory);
            more |= self.check(RECEIVE, result);
        }
        more
    }

    fn reset(&mut self) {
        // The link stays: it may have a part of a frame, and the next driver has the same network.
        (self.rings, self.starved, self.transmitting) = ([None, None], false, false);
    }
}

/// Leaves the first bytes of the pieces out.
fn skip(pieces: &mut [IoBuf<'_>], mut bytes: usize) {
    for piece in pieces {
        let (skipped, rest) = piece.split_at(bytes);
        bytes -= skipped.len();
        *piece = rest;
    }
}

/// Writes parts into the pieces, one behind the other.
fn scatter(pieces: &[IoBuf<'_>], parts: &[&[u8]]) {
    let mut pieces = pieces.iter().copied();
    let mut piece = pieces.next();
    for part in parts {
        let mut part = *part;
        while !part.is_empty() {
            let Some(room) = piece else { return };
            let count = room.copy_from(part);
            part = &part[count..];
            let rest = room.split_at(count).1;
            piece = if rest.is_empty() { pieces.next() } else { Some(rest) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_one_machines() {
        let address: Address = "5a:94:ef:e4:0c:ee".parse().unwrap();
        assert_eq!(address, Address([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]));
        assert_eq!(address.to_string(), "5a:94:ef:e4:0c:ee");
        for wrong in
            ["", "1:2:3:4:5", "02:00:00:00:00:00:00", "03:00:00:00:00:00", "0:0:0:0:0:0", "x:0:0:0:0:0"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        let (a, b) = (Address::of(b"/run/a"), Address::of(b"/run/b"));
        assert!(a == Address::of(b"/run/a") && a != b && a.0[0] == 2 && b.0[0] == 2);
    }
}
