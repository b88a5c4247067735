//! Who is connected, and whose turn it is.

use std::collections::{HashMap, HashSet, VecDeque};

use slab::Slab;

use super::connection::{Connection, Phase};
use super::host::Greeting;
use super::packet::Header;
use crate::io::{ByteRing, Endpoint};

/// The first port handed out to host-initiated connections, as Firecracker does; below lies what services use.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// A stream within its device, until it is removed; then the number may return.
pub type StreamId = u32;

/// The name of a connection of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The other side's cid: the host's, or another guest's.
    pub peer_cid: u64,
    /// The other side's port.
    pub peer_port: u32,
    /// The guest's port.
    pub guest_port: u32,
}

impl Key {
    /// The connection that a packet from the guest belongs to.
    pub fn of(header: &Header) -> Self {
        Self { peer_cid: header.dst_cid, peer_port: header.dst_port, guest_port: header.src_port }
    }
}

/// A connection with its stream on the host's side.
pub struct Stream {
    /// Its name.
    pub key: Key,
    /// Its state.
    pub machine: Connection,
    /// The host's side.
    pub endpoint: Endpoint,
    /// What the guest sent and the host's side has not taken.
    pub outgoing: ByteRing,
    /// The endpoint may have bytes, or an end, for the guest.
    pub readable: bool,
    /// The endpoint may take bytes.
    pub writable: bool,
    /// The endpoint's other side has ended its writing, though bytes of it may still wait.
    pub ended: bool,
    /// The endpoint's other side is gone altogether, though bytes of it may still wait.
    pub hung_up: bool,
    /// End the endpoint's writing when `outgoing` is empty.
    pub end_when_flushed: bool,
    /// How the client on the host learns the outcome.
    pub greeting: Greeting,
    /// How many bytes to try to read, by experience.
    pub appetite: usize,
    /// Tells this stream from earlier ones with the same id.
    pub serial: u64,
    queued: bool,
}

/// All streams of a device.
#[derive(Default)]
pub struct Table {
    streams: Slab<Stream>,
    by_key: HashMap<Key, StreamId>,
    turns: VecDeque<StreamId>,
    last_port: u32,
    serials: u64,
}

/// How many bytes a stream tries to read first.
const FIRST_APPETITE: usize = 16 * 1024;

impl Table {
    /// Streams, those that only drain included.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Bytes kept in all.
    pub fn buffered(&self) -> usize {
        self.streams.iter().map(|(_, stream)| stream.outgoing.len()).sum()
    }

    /// There are no streams.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Adds a stream under a free key.
    pub fn insert(
        &mut self,
        key: Key,
        machine: Connection,
        endpoint: Endpoint,
        greeting: Greeting,
    ) -> StreamId {
        self.serials += 1;
        let id = self.streams.insert(Stream {
            key,
            machine,
            endpoint,
            outgoing: ByteRing::default(),
            readable: true,
            writable: true,
            ended: false,
            hung_up: false,
            end_when_flushed: false,
            greeting,
            appetite: FIRST_APPETITE,
            serial: self.serials,
            queued: false,
        });
        // The number of streams is limited far below.
        let id = StreamId::try_from(id).unwrap_or(StreamId::MAX);
        self.by_key.insert(key, id);
        id
    }

    /// The stream with this id.
    pub fn get(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(id as usize)
    }

    /// The stream with this id.
    pub fn get_mut(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.streams.get_mut(id as usize)
    }

    /// The stream with this name, unless it only drains.
    pub fn find(&self, key: &Key) -> Option<StreamId> {
        self.by_key.get(key).copied()
    }

    /// Frees the name of a stream.
    pub fn release(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get(id as usize)
            && self.by_key.get(&stream.key) == Some(&id)
        {
            self.by_key.remove(&stream.key);
        }
    }

    /// Removes a stream.
    pub fn remove(&mut self, id: StreamId) -> Option<Stream> {
        self.release(id);
        self.streams.try_remove(id as usize)
    }

    /// Removes all streams.
    pub fn clear(&mut self) -> Vec<Stream> {
        self.by_key.clear();
        self.turns.clear();
        self.streams.drain().collect()
    }

    /// A port on the host's side that no connection of this guest uses.
    pub fn free_port(&mut self, peer_cid: u64, guest_port: u32) -> u32 {
        loop {
            self.last_port = if self.last_port < FIRST_HOST_PORT || self.last_port >= u32::MAX - 1 {
                FIRST_HOST_PORT
            } else {
                self.last_port + 1
            };
            let key = Key { peer_cid, peer_port: self.last_port, guest_port };
            if !self.by_key.contains_key(&key) {
                return self.last_port;
            }
        }
    }

    /// Puts a stream at the end of the ring of turns if it has something for the guest and is not there yet.
    pub fn queue_turn(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id as usize) else { return };
        if !stream.queued && stream.has_work() {
            stream.queued = true;
            self.turns.push_back(id);
        }
        if self.turns.len() > 2 * self.streams.len() + 1024 {
            self.drop_stale_turns();
        }
    }

    /// A guest that opens and closes connections but offers no receive buffers must not make the ring grow.
    fn drop_stale_turns(&mut self) {
        for (_, stream) in &mut self.streams {
            stream.queued = false;
        }
        let streams = &mut self.streams;
        self.turns.retain(|id| {
            streams.get_mut(*id as usize).is_some_and(|stream| !std::mem::replace(&mut stream.queued, true))
        });
    }

    /// Some stream waits for a turn.
    pub fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Whose turn it is.
    pub fn next_turn(&mut self) -> Option<StreamId> {
        while let Some(id) = self.turns.pop_front() {
            // An id that went and came back meanwhile has at most one turn too many.
            if let Some(stream) = self.streams.get_mut(id as usize) {
                stream.queued = false;
                return Some(id);
            }
        }
        None
    }

    /// Gives a turn back that could not be used.
    pub fn return_turn(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id as usize)
            && !stream.queued
        {
            stream.queued = true;
            self.turns.push_front(id);
        }
    }
}

impl Stream {
    /// There is something to send to the guest, as far as the stream knows.
    pub fn has_work(&mut self) -> bool {
        if self.machine.has_control() {
            return true;
        }
        if !self.readable || self.machine.phase() != Phase::Established {
            return false;
        }
        if self.machine.readable().is_some() {
            return true;
        }
        self.machine.ask_credit();
        self.machine.has_control()
    }
}

/// Resets for packets that belong to no connection, until there is a receive buffer for them.
///
/// Each name is kept once. A guest that gets more than the limit wrong at once, and takes no answers, gets no more of
/// them: its own timeouts must do.
#[derive(Default)]
pub struct Resets {
    order: VecDeque<Key>,
    known: HashSet<Key>,
}

impl Resets {
    const LIMIT: usize = 8192;

    /// Adds one.
    pub fn push(&mut self, key: Key) {
        if self.order.len() < Self::LIMIT && self.known.insert(key) {
            self.order.push_back(key);
        }
    }

    /// The next one.
    pub fn front(&self) -> Option<Key> {
        self.order.front().copied()
    }

    /// Takes the next one.
    pub fn pop(&mut self) {
        if let Some(key) = self.order.pop_front() {
            self.known.remove(&key);
        }
    }

    /// None wait.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.order.clear();
        self.known.clear();
    }
}
