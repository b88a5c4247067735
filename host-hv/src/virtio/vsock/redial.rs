//! Requests of the guest that found the host's listener busy: they are tried again for as long as an answer may take.

use std::time::{Duration, Instant};

use super::Key;
use super::packet::Header;

/// Time between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Requests that may wait; more are refused at once.
const LIMIT: usize = 1024;

struct Entry {
    header: Header,
    next: Instant,
    until: Instant,
}

/// What to do with a request whose time has come.
pub enum Due {
    /// Dial again; if it is still busy, give it back to [`Redials::again`].
    Dial(Header, Instant),
    /// Refuse it.
    GiveUp(Header),
}

/// The requests that wait. There is a timer only while there are any.
#[derive(Default)]
pub struct Redials(Vec<Entry>);

impl Redials {
    /// Takes a request that has time until `until`. False: too many wait.
    pub fn again(&mut self, header: Header, now: Instant, until: Instant) -> bool {
        let room = self.0.len() < LIMIT;
        if room {
            self.0.push(Entry { header, next: (now + PAUSE).min(until), until });
        }
        room
    }

    /// The guest's request with this name waits.
    pub fn contains(&self, key: &Key) -> bool {
        self.0.iter().any(|entry| Key::of(&entry.header) == *key)
    }

    /// Forgets a request, if it waits.
    pub fn forget(&mut self, key: &Key) {
        self.0.retain(|entry| Key::of(&entry.header) != *key);
    }

    /// When the next try is due.
    pub fn next(&self) -> Option<Instant> {
        self.0.iter().map(|entry| entry.next).min()
    }

    /// Takes a request whose time has come.
    pub fn pop_due(&mut self, now: Instant) -> Option<Due> {
        let at = self.0.iter().position(|entry| entry.next <= now)?;
        let Entry { header, until, .. } = self.0.remove(at);
        Some(if now >= until { Due::GiveUp(header) } else { Due::Dial(header, until) })
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
