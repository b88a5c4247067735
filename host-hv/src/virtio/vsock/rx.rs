//! The receive ring: packets to the guest, control first, then the streams in turn.

use super::connection::Event;
use super::device::Vsock;
use super::packet::Header;
use super::spec::{HEADER_SIZE, Op, RX_QUEUE};
use super::table::StreamId;
use crate::io::{IoBuf, StreamEnd};
use crate::virtio::{MAX_CHAIN_SEGMENTS, Memory, Ring, RingError};

/// Bytes one stream may send before the next has its turn.
const TURN_BYTES: usize = 256 * 1024;

/// The smallest number of bytes to try to read.
const MIN_APPETITE: usize = 4096;

/// Turns before the event loop looks at its other work.
const TURNS_PER_RUN: usize = 64;

/// Buffers of the guest taken for one read; the vectors keep their memory from turn to turn.
#[derive(Default)]
struct Batch<'m> {
    slots: Vec<Slot>,
    headers: Vec<IoBuf<'m>>,
    payload: Vec<IoBuf<'m>>,
    room: usize,
}

/// One chain: its head, where its header pieces end in the batch, and its room for payload.
struct Slot {
    head: u16,
    headers_end: usize,
    room: usize,
}

/// How a turn ended.
enum Turn {
    Done,
    Starved,
}

impl Vsock {
    /// Sends what there is. True: more is there, and the guest still had buffers.
    pub(super) fn run_rx(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let Some(mut ring) = self.rings[RX_QUEUE].take() else { return Ok(false) };
        let result = self.fill_rx(&mut ring, memory);
        let result = result.and_then(|more| ring.notify(memory).map(|()| more));
        self.rings[RX_QUEUE] = Some(ring);
        result
    }

    fn fill_rx(&mut self, ring: &mut Ring, memory: &Memory) -> Result<bool, RingError> {
        let mut batch = Batch::default();
        ring.disable_kicks(memory)?;
        for _ in 0..TURNS_PER_RUN {
            if self.resets.is_empty() && !self.table.has_turns() {
                return Ok(false);
            }
            let turn = match self.resets.front() {
                Some(key) => {
                    let sent = send_control(ring, memory, &self.header(&key, Op::Reset, 0))?;
                    if sent {
                        self.resets.pop();
                        Turn::Done
                    } else {
                        Turn::Starved
                    }
                }
                None => match self.table.next_turn() {
                    Some(id) => self.turn(id, ring, memory, &mut batch)?,
                    None => return Ok(false),
                },
            };
            // The guest's buffers ran out: its next kick brings us back, unless some came in this moment.
            if matches!(turn, Turn::Starved) && !ring.enable_kicks(memory)? {
                self.starved = true;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn turn<'m>(
        &mut self,
        id: StreamId,
        ring: &mut Ring,
        memory: &'m Memory,
        batch: &mut Batch<'m>,
    ) -> Result<Turn, RingError> {
        let cid = self.cid;
        loop {
            let Some(stream) = self.table.get_mut(id) else { return Ok(Turn::Done) };
            if !stream.machine.has_control() {
                break;
            }
            let Some(slot) = take_buffer(ring, memory, batch, 0)? else {
                self.table.return_turn(id);
                return Ok(Turn::Starved);
            };
            let Some((op, flags)) = stream.machine.next_control() else { break };
            let (buf_alloc, fwd_cnt) = stream.machine.tell_credit();
            let key = stream.key;
            let header = Header { buf_alloc, fwd_cnt, ..self.header(&key, op, flags) };
            scatter(&batch.headers, &header.encode());
            ring.complete(memory, slot.head, HEADER_SIZE)?;
        }

        let Some(stream) = self.table.get_mut(id) else { return Ok(Turn::Done) };
        let credit = stream.machine.readable().unwrap_or(0) as usize;
        if !stream.readable || credit == 0 {
            self.table.queue_turn(id);
            return Ok(Turn::Done);
        }
        let wanted = credit.min(stream.appetite);
        batch.gather(ring, memory, wanted)?;
        if batch.room == 0 {
            self.table.return_turn(id);
            return Ok(Turn::Starved);
        }
        let wanted = wanted.min(batch.room);
        batch.trim(wanted);
        let mut event = None;
        let mut used = 0;
        match stream.endpoint.read(&batch.payload) {
            StreamEnd::Moved(count, drained) => {
                // An end that was announced is read only after the last byte, and not announced again.
                stream.readable = !drained || stream.ended;
                stream.appetite = next_appetite(stream.appetite, count);
                let key = stream.key;
                let mut left = count;
                let mut headers_start = 0;
                for slot in &batch.slots {
                    let len = left.min(slot.room);
                    if len == 0 {
                        break;
                    }
                    left -= len;
                    let written = HEADER_SIZE + len;
                    // A turn's bytes are far below 4 GiB.
                    let len = u32::try_from(len).unwrap_or(u32::MAX);
                    stream.machine.sent(len);
                    let (buf_alloc, fwd_cnt) = stream.machine.tell_credit();
                    let header = Header {
                        src_cid: key.peer_cid,
                        dst_cid: cid,
                        src_port: key.peer_port,
                        dst_port: key.guest_port,
                        len,
                        kind: super::spec::TYPE_STREAM,
                        op: Op::ReadWrite,
                        flags: 0,
                        buf_alloc,
                        fwd_cnt,
                    };
                    scatter(&batch.headers[headers_start..slot.headers_end], &header.encode());
                    headers_start = slot.headers_end;
                    ring.complete(memory, slot.head, written)?;
                    used += 1;
                }
            }
            StreamEnd::Ended => {
                stream.readable = false;
                event = Some(if stream.hung_up { Event::HostGone } else { Event::HostEnded });
            }
            StreamEnd::Broken => {
                stream.readable = false;
                event = Some(Event::HostGone);
            }
        }
        ring.unpop(batch.slots.len() - used);
        if let Some(event) = event {
            self.feed(id, event);
        }
        self.table.queue_turn(id);
        Ok(Turn::Done)
    }
}

/// Reads that fill what was offered ask for more next time; small ones take fewer buffers off the ring.
fn next_appetite(appetite: usize, count: usize) -> usize {
    if count >= appetite {
        (appetite * 4).min(TURN_BYTES)
    } else if count < appetite / 4 {
        (appetite / 2).max(MIN_APPETITE)
    } else {
        appetite
    }
}

impl<'m> Batch<'m> {
    /// Takes chains until there is room for `wanted` bytes or the guest offers no more.
    fn gather(&mut self, ring: &mut Ring, memory: &'m Memory, wanted: usize) -> Result<(), RingError> {
        self.clear();
        while self.room < wanted && self.payload.len() < MAX_CHAIN_SEGMENTS {
            let before = self.payload.len();
            let Some(slot) = take_chain(ring, memory, self, 1)? else { break };
            // One call of the kernel takes so many pieces and no more.
            if self.payload.len() > MAX_CHAIN_SEGMENTS && before > 0 {
                ring.unpop(1);
                self.payload.truncate(before);
                let end = self.slots.last().map_or(0, |slot| slot.headers_end);
                self.headers.truncate(end);
                break;
            }
            self.room += slot.room;
            self.slots.push(slot);
        }
        Ok(())
    }

    /// Cuts the payload pieces down to `bytes` in all.
    fn trim(&mut self, bytes: usize) {
        let mut left = bytes;
        let mut keep = 0;
        for piece in &mut self.payload {
            if left == 0 {
                break;
            }
            *piece = piece.split_at(left).0;
            left -= piece.len();
            keep += 1;
        }
        self.payload.truncate(keep);
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.headers.clear();
        self.payload.clear();
        self.room = 0;
    }
}

/// Sends a packet without payload. False: the guest has no buffer.
fn send_control(ring: &mut Ring, memory: &Memory, header: &Header) -> Result<bool, RingError> {
    let mut batch = Batch::default();
    let Some(slot) = take_buffer(ring, memory, &mut batch, 0)? else { return Ok(false) };
    scatter(&batch.headers, &header.encode());
    ring.complete(memory, slot.head, HEADER_SIZE)?;
    Ok(true)
}

/// Takes one chain alone.
fn take_buffer<'m>(
    ring: &mut Ring,
    memory: &'m Memory,
    batch: &mut Batch<'m>,
    room: usize,
) -> Result<Option<Slot>, RingError> {
    batch.clear();
    take_chain(ring, memory, batch, room)
}

/// Takes the next chain that has room for a header and `room` bytes; gives useless ones back empty.
fn take_chain<'m>(
    ring: &mut Ring,
    memory: &'m Memory,
    batch: &mut Batch<'m>,
    room: usize,
) -> Result<Option<Slot>, RingError> {
    while let Some(head) = ring.pop(memory)? {
        let start = batch.payload.len();
        match ring.descriptors(memory).writable(head, &mut batch.payload) {
            Ok(bytes) if bytes >= HEADER_SIZE + room => {
                split_header(&mut batch.payload, start, &mut batch.headers);
                return Ok(Some(Slot { head, headers_end: batch.headers.len(), room: bytes - HEADER_SIZE }));
            }
            Ok(bytes) => tracing::debug!(bytes, "The guest's receive buffer is too small"),
            Err(error) => tracing::warn!(%error, "The guest's receive buffer is refused"),
        }
        batch.payload.truncate(start);
        ring.complete(memory, head, 0)?;
    }
    Ok(None)
}

/// Moves the pieces of the first [`HEADER_SIZE`] bytes from `pieces[start..]`, which has as many, to `headers`.
pub(super) fn split_header<'m>(pieces: &mut Vec<IoBuf<'m>>, start: usize, headers: &mut Vec<IoBuf<'m>>) {
    let mut left = HEADER_SIZE;
    let mut whole = 0;
    for piece in &mut pieces[start..] {
        let (head, tail) = piece.split_at(left);
        left -= head.len();
        headers.push(head);
        if !tail.is_empty() {
            *piece = tail;
            break;
        }
        whole += 1;
        if left == 0 {
            break;
        }
    }
    pieces.drain(start..start + whole);
}

/// Spreads `bytes` over the pieces.
pub(super) fn scatter(pieces: &[IoBuf<'_>], mut bytes: &[u8]) {
    for piece in pieces {
        let count = piece.copy_from(bytes);
        bytes = &bytes[count..];
    }
}
