//! The transmit ring: packets from the guest. Data of one stream that comes in a row leaves in one write.

use super::connection::{Event, Phase, Todo};
use super::device::Vsock;
use super::packet::Header;
use super::rx::split_header;
use super::spec::{HEADER_SIZE, HOST_CID, Op, TX_QUEUE};
use super::table::{Key, StreamId};
use crate::io::{IoBuf, StreamEnd};
use crate::virtio::{ChainError, MAX_CHAIN_SEGMENTS, Memory, Ring, RingError};

/// Chains before the event loop looks at its other work.
const CHAINS_PER_RUN: usize = 512;

/// Bytes gathered for one write at most.
const BATCH_BYTES: usize = 1 << 20;

/// Data of one stream, still in the guest's buffers.
#[derive(Default)]
struct Batch<'m> {
    stream: Option<StreamId>,
    payload: Vec<IoBuf<'m>>,
    bytes: usize,
    heads: Vec<u16>,
}

impl Vsock {
    /// Takes what the guest has put on the ring. True: there is more.
    pub(super) fn run_tx(&mut self, memory: &Memory) -> Result<bool, RingError> {
        let Some(mut ring) = self.rings[TX_QUEUE].take() else { return Ok(false) };
        let result = self.drain_tx(&mut ring, memory);
        let result = result.and_then(|more| ring.notify(memory).map(|()| more));
        self.rings[TX_QUEUE] = Some(ring);
        result
    }

    fn drain_tx(&mut self, ring: &mut Ring, memory: &Memory) -> Result<bool, RingError> {
        let mut batch = Batch::default();
        let mut pieces = Vec::new();
        let mut headers = Vec::new();
        ring.disable_kicks(memory)?;
        for _ in 0..CHAINS_PER_RUN {
            let Some(head) = ring.pop(memory)? else {
                self.send_batch(&mut batch, ring, memory)?;
                if ring.enable_kicks(memory)? {
                    ring.disable_kicks(memory)?;
                    continue;
                }
                return Ok(false);
            };
            pieces.clear();
            headers.clear();
            match read_packet(ring, memory, head, &mut pieces, &mut headers) {
                Ok(header) => self.take_packet(head, &header, &mut pieces, &mut batch, ring, memory)?,
                Err(fault) => {
                    tracing::warn!(cid = self.cid, %fault, "The guest's packet is refused");
                    ring.complete(memory, head, 0)?;
                }
            }
        }
        self.send_batch(&mut batch, ring, memory)?;
        Ok(true)
    }

    fn take_packet<'m>(
        &mut self,
        head: u16,
        header: &Header,
        pieces: &mut Vec<IoBuf<'m>>,
        batch: &mut Batch<'m>,
        ring: &mut Ring,
        memory: &Memory,
    ) -> Result<(), RingError> {
        let data = header.op == Op::ReadWrite;
        let same = data
            && batch.stream.is_some()
            && batch.stream == self.table.find(&Key::of(header))
            && batch.payload.len() + pieces.len() <= MAX_CHAIN_SEGMENTS
            && batch.bytes + header.len as usize <= BATCH_BYTES;
        if !same {
            // Whatever this packet does must come after the bytes before it.
            self.send_batch(batch, ring, memory)?;
        }
        match self.packet(header) {
            Some((id, todo)) if todo.contains(Todo::ACCEPT) => {
                batch.stream = Some(id);
                batch.payload.append(pieces);
                batch.bytes += header.len as usize;
                batch.heads.push(head);
                return Ok(());
            }
            Some((id, todo)) if todo.contains(Todo::DISCARD) => {
                if let Some(stream) = self.table.get_mut(id) {
                    stream.machine.forwarded(header.len);
                }
                self.settle(id);
            }
            _ => {}
        }
        ring.complete(memory, head, 0)
    }

    /// Writes the batch to its stream; what would block is kept, within the credit the guest had.
    fn send_batch(
        &mut self,
        batch: &mut Batch<'_>,
        ring: &mut Ring,
        memory: &Memory,
    ) -> Result<(), RingError> {
        let Some(id) = batch.stream.take() else { return Ok(()) };
        let mut deaf = false;
        if let Some(stream) = self.table.get_mut(id) {
            let mut sent = 0;
            if stream.writable && stream.outgoing.is_empty() && batch.bytes > 0 {
                match stream.endpoint.write(&batch.payload) {
                    StreamEnd::Moved(count, blocked) => {
                        stream.writable = !blocked;
                        sent = count;
                    }
                    StreamEnd::Ended | StreamEnd::Broken => {
                        sent = batch.bytes;
                        deaf = true;
                    }
                }
            }
            stream.forwarded(sent);
            if sent < batch.bytes && stream.machine.phase() == Phase::Established {
                stream.outgoing.push(&batch.payload, sent);
            }
        }
        for head in batch.heads.drain(..) {
            ring.complete(memory, head, 0)?;
        }
        batch.payload.clear();
        batch.bytes = 0;
        if deaf {
            self.feed(id, Event::HostDeaf);
        } else {
            self.settle(id);
        }
        Ok(())
    }
}

/// What is wrong with a packet as a whole.
#[derive(Debug, thiserror::Error)]
enum PacketFault {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("The guest's packet has {bytes} bytes, too few for a header")]
    Short { bytes: usize },
    #[error("The guest's packet says {said} bytes of payload and has {bytes}")]
    Payload { said: u32, bytes: usize },
}

/// Reads the header; leaves exactly the payload that it announces in `pieces`.
fn read_packet<'m>(
    ring: &Ring,
    memory: &'m Memory,
    head: u16,
    pieces: &mut Vec<IoBuf<'m>>,
    headers: &mut Vec<IoBuf<'m>>,
) -> Result<Header, PacketFault> {
    let bytes = ring.descriptors(memory).readable(head, pieces)?;
    if bytes < HEADER_SIZE {
        return Err(PacketFault::Short { bytes });
    }
    split_header(pieces, 0, headers);
    let mut raw = [0; HEADER_SIZE];
    let mut at = 0;
    for piece in headers.iter() {
        at += piece.copy_to(&mut raw[at..]);
    }
    let header = Header::decode(&raw);
    let (said, bytes) = (header.len, bytes - HEADER_SIZE);
    // Only data carries a payload; anything else has its surplus ignored.
    if header.op == Op::ReadWrite && said as usize > bytes {
        return Err(PacketFault::Payload { said, bytes });
    }
    let mut left = said as usize;
    for piece in pieces.iter_mut() {
        *piece = piece.split_at(left).0;
        left -= piece.len();
    }
    pieces.retain(|piece| !piece.is_empty());
    Ok(header)
}

const _: () = assert!(HOST_CID == 2);
