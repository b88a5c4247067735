//! A two-way byte stream within the process, for connections between guests and for tests.
//!
//! Both ends live on one thread. An end that becomes readable or writable through what the other end did is put
//! into the wake list given to [`pipe`], under the token of that end.

use std::cell::RefCell;
use std::io::IoSlice;
use std::net::Shutdown;
use std::rc::Rc;

use vm_memory::VolatileSlice;

use super::{ByteRing, IoBuf, StreamEnd};

/// The most bytes that wait in one direction.
const CAPACITY: usize = 128 * 1024;

/// Ends that have something to do, by token, in order.
pub type WakeList = Rc<RefCell<Vec<usize>>>;

#[derive(Default)]
struct Direction {
    bytes: ByteRing,
    /// The writer will write no more.
    ended: bool,
    /// The reader will read no more.
    broken: bool,
}

struct Shared {
    /// Indexed by the end that writes.
    directions: [Direction; 2],
    tokens: [Option<usize>; 2],
    accepted: bool,
    wake: WakeList,
}

impl Shared {
    fn wake(&self, side: usize) {
        if let Some(token) = self.tokens[side] {
            self.wake.borrow_mut().push(token);
        }
    }
}

/// One end of a [`pipe`].
pub struct PipeEnd {
    shared: Rc<RefCell<Shared>>,
    side: usize,
}

/// Makes a pipe.
pub fn pipe(wake: &WakeList) -> (PipeEnd, PipeEnd) {
    let shared = Rc::new(RefCell::new(Shared {
        directions: [Direction::default(), Direction::default()],
        tokens: [None, None],
        accepted: false,
        wake: wake.clone(),
    }));
    (PipeEnd { shared: shared.clone(), side: 0 }, PipeEnd { shared, side: 1 })
}

impl PipeEnd {
    /// Names this end in the wake list from now on.
    pub fn set_token(&mut self, token: usize) {
        self.shared.borrow_mut().tokens[self.side] = Some(token);
    }

    /// Tells the other end that it is connected.
    pub fn accept(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.accepted = true;
        shared.wake(1 - self.side);
    }

    /// The other end has accepted.
    pub fn is_accepted(&self) -> bool {
        self.shared.borrow().accepted
    }

    /// Reads into the pieces.
    pub fn read(&mut self, to: &[IoBuf<'_>]) -> StreamEnd {
        let mut shared = self.shared.borrow_mut();
        let other = 1 - self.side;
        let direction = &mut shared.directions[other];
        let was_full = direction.bytes.len() >= CAPACITY;
        let count = direction.bytes.pop(to);
        if count == 0 && direction.ended {
            return StreamEnd::Ended;
        }
        let drained = direction.bytes.is_empty() && !direction.ended;
        if was_full && count > 0 {
            shared.wake(other);
        }
        StreamEnd::Moved(count, drained)
    }

    /// Writes the pieces as far as there is room.
    pub fn write(&mut self, from: &[IoBuf<'_>]) -> StreamEnd {
        let asked = from.iter().map(IoBuf::len).sum();
        self.write_with(asked, |ring, room| {
            let mut left = room;
            for piece in from {
                let (now, _) = piece.split_at(left);
                ring.push(&[now], 0);
                left -= now.len();
            }
        })
    }

    /// Writes plain bytes as far as there is room.
    pub fn write_bytes(&mut self, from: &[IoSlice<'_>]) -> StreamEnd {
        let asked = from.iter().map(|slice| slice.len()).sum();
        self.write_with(asked, |ring, room| {
            let mut left = room;
            for slice in from {
                let now = &slice[..slice.len().min(left)];
                ring.push_bytes(now);
                left -= now.len();
            }
        })
    }

    fn write_with(&mut self, asked: usize, push: impl FnOnce(&mut ByteRing, usize)) -> StreamEnd {
        let mut shared = self.shared.borrow_mut();
        let direction = &mut shared.directions[self.side];
        if direction.broken || direction.ended {
            return StreamEnd::Broken;
        }
        let was_empty = direction.bytes.is_empty();
        let count = asked.min(CAPACITY.saturating_sub(direction.bytes.len()));
        push(&mut direction.bytes, count);
        if was_empty && count > 0 {
            shared.wake(1 - self.side);
        }
        StreamEnd::Moved(count, count < asked)
    }

    /// Ends one direction or both.
    pub fn shutdown(&mut self, how: Shutdown) {
        let mut shared = self.shared.borrow_mut();
        let (own, other) = (self.side, 1 - self.side);
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            shared.directions[own].ended = true;
        }
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            shared.directions[other].broken = true;
            shared.directions[other].bytes.clear();
        }
        shared.wake(other);
    }

    /// Reads into plain memory.
    pub fn read_bytes(&mut self, to: &mut [u8]) -> StreamEnd {
        self.read(&[IoBuf::from(VolatileSlice::from(to))])
    }

    /// The other side writes no more.
    pub fn is_ended(&self) -> bool {
        self.shared.borrow().directions[1 - self.side].ended
    }

    /// The other side has closed, or has ended both directions.
    pub fn is_closed(&self) -> bool {
        let shared = self.shared.borrow();
        shared.directions[1 - self.side].ended && shared.directions[self.side].broken
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        self.shutdown(Shutdown::Both);
    }
}
