//! Connections between guests that one program serves.
//!
//! A connection to another guest's cid is two connections, one on each device, joined by an in-memory pipe. So each
//! guest has credit with us alone, a guest that reads nothing holds up nobody but its peer on that one connection,
//! and half-close, limits and timeouts are those of any other connection. The guest that accepts sees the cid and
//! port of the guest that asked.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::Key;
use super::host::{Dial, DialError};
use crate::io::{PipeEnd, WakeList, pipe};

/// Calls that may wait to be put through; the loop takes all of them each time round.
const MAX_CALLS: usize = 1024;

/// A guest's wish to reach another.
pub struct Call {
    /// The number of the guest that is wanted.
    pub to: usize,
    /// Its port.
    pub port: u32,
    /// The cid and port that ask.
    pub from: (u64, Option<u32>),
    /// The called guest's end.
    pub pipe: PipeEnd,
}

#[derive(Default)]
struct Shared {
    cids: Vec<u64>,
    calls: RefCell<VecDeque<Call>>,
    woken: WakeList,
}

/// Puts calls between guests through.
pub struct Switch(Rc<Shared>);

/// One guest's line to the others.
pub struct Member {
    shared: Rc<Shared>,
    number: usize,
}

impl Switch {
    /// Guests are numbered in the order of their cids here.
    pub fn new(cids: impl Iterator<Item = u64>) -> Self {
        Self(Rc::new(Shared { cids: cids.collect(), ..Shared::default() }))
    }

    /// The line of a guest.
    pub fn member(&self, number: usize) -> Member {
        Member { shared: self.0.clone(), number }
    }

    /// The next call to put through.
    pub fn next_call(&self) -> Option<Call> {
        self.0.calls.borrow_mut().pop_front()
    }

    /// The tokens of the pipe ends that have news.
    pub fn take_woken(&self) -> Vec<usize> {
        self.0.woken.take()
    }
}

impl Member {
    /// Calls another guest.
    pub fn dial(&self, key: &Key) -> Result<Dial, DialError> {
        let unreachable = DialError::Unreachable { cid: key.peer_cid };
        let Some(to) = self.shared.cids.iter().position(|cid| *cid == key.peer_cid) else {
            return Err(unreachable);
        };
        let mut calls = self.shared.calls.borrow_mut();
        if to == self.number || calls.len() >= MAX_CALLS {
            return Err(unreachable);
        }
        let (near, far) = pipe(&self.shared.woken);
        let from = (self.shared.cids[self.number], Some(key.guest_port));
        calls.push_back(Call { to, port: key.peer_port, from, pipe: far });
        Ok(Dial::Pending(near))
    }
}
