//! Timeouts. Each kind has one length, so that each kind is a queue; nothing ticks while the queues are empty.

use std::collections::VecDeque;
use std::time::Instant;

use super::{CLOSE_TIMEOUT, HANDSHAKE_TIMEOUT, StreamId};

/// What a stream is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An answer to a request.
    Handshake,
    /// The guest's reset after a shutdown of both directions.
    Close,
}

#[derive(Clone, Copy)]
struct Entry {
    at: Instant,
    id: StreamId,
    serial: u64,
}

/// The deadlines of one device.
#[derive(Default)]
pub struct Deadlines {
    handshake: VecDeque<Entry>,
    close: VecDeque<Entry>,
}

impl Deadlines {
    /// Starts a timeout for the stream with this id and serial number.
    pub fn start(&mut self, kind: Kind, now: Instant, id: StreamId, serial: u64) {
        match kind {
            Kind::Handshake => self.handshake.push_back(Entry { at: now + HANDSHAKE_TIMEOUT, id, serial }),
            Kind::Close => self.close.push_back(Entry { at: now + CLOSE_TIMEOUT, id, serial }),
        }
    }

    /// Timeouts kept, settled ones included.
    pub fn len(&self) -> usize {
        self.handshake.len() + self.close.len()
    }

    /// None is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops those that `waits` says are settled.
    pub fn drop_settled(&mut self, waits: impl Fn(Kind, StreamId, u64) -> bool) {
        self.handshake.retain(|entry| waits(Kind::Handshake, entry.id, entry.serial));
        self.close.retain(|entry| waits(Kind::Close, entry.id, entry.serial));
    }

    /// When the next timeout is due, leaving out those that `waits` says are settled.
    pub fn next(&mut self, waits: impl Fn(Kind, StreamId, u64) -> bool) -> Option<Instant> {
        let mut next = None;
        for (kind, queue) in [(Kind::Handshake, &mut self.handshake), (Kind::Close, &mut self.close)] {
            while queue.front().is_some_and(|entry| !waits(kind, entry.id, entry.serial)) {
                queue.pop_front();
            }
            next = next.into_iter().chain(queue.front().map(|entry| entry.at)).min();
        }
        next
    }

    /// Takes one timeout that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<(Kind, StreamId, u64)> {
        for (kind, queue) in [(Kind::Handshake, &mut self.handshake), (Kind::Close, &mut self.close)] {
            if let Some(entry) = queue.pop_front_if(|entry| entry.at <= now) {
                return Some((kind, entry.id, entry.serial));
            }
        }
        None
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.handshake.clear();
        self.close.clear();
    }
}
