//! A forwarded connection's bytes that wait, and what the rim does with them: [`End`] and one buffer.
//!
//! ```text
//!  connection --frames--> waiting --> socket      waiting: at most the credit we granted
//!  connection <--frames-------------- socket      read only while the peer has granted credit
//! ```
//! Either way may stall without stalling the other: what our socket does not take is kept (the credit bounds it) while
//! the connection is read on. Payloads are not copied on the fast path: arriving bytes are offered to the socket from
//! the receive buffer, and outgoing ones stay where the rim read them.

use std::collections::VecDeque;

use super::{End, ForwardError, Open, Step};
use crate::error::{ErrorKind, WireError};
use crate::frame::{Frame, Header};

/// One end of a forwarded connection. The rim reads and writes, and appends what the methods append to `out`.
#[derive(Debug)]
pub struct Relay {
    end: End,
    waiting: VecDeque<u8>,
    opened: Option<Open>,
    peer_ended: bool,
    shut: bool,
    socket_ended: bool,
    unwanted: bool,
    dismissed: bool,
    failed: Option<WireError>,
}

impl Relay {
    /// The host's end, whose request the rim has sent.
    #[must_use]
    pub const fn host() -> Self {
        Self::new(End::host())
    }

    /// The guest's end, whose socket is connected: says so.
    pub fn guest(open: &Open, out: &mut Vec<u8>) -> Self {
        Self::new(End::guest(open, out))
    }

    const fn new(end: End) -> Self {
        Self {
            end,
            waiting: VecDeque::new(),
            opened: None,
            peer_ended: false,
            shut: false,
            socket_ended: false,
            unwanted: false,
            dismissed: false,
            failed: None,
        }
    }

    /// A frame arrived. `offer` writes to our socket without waiting and says how much it took.
    ///
    /// # Errors
    /// [`ForwardError`]: the peer broke the protocol. Reset our socket.
    pub fn receive(
        &mut self,
        frame: Frame<'_>,
        out: &mut Vec<u8>,
        offer: impl FnOnce(&[u8]) -> usize,
    ) -> Result<(), ForwardError> {
        match self.end.receive(frame)? {
            Step::Nothing | Step::Room => (),
            Step::Bye => self.dismissed = true,
            Step::Open(open) => self.opened = Some(open),
            Step::Bytes(bytes) => {
                let taken = if self.waiting.is_empty() { offer(bytes).min(bytes.len()) } else { 0 };
                self.end.written(taken, out);
                self.waiting.extend(&bytes[taken..]);
            }
            Step::PeerEnded => self.peer_ended = true,
            // Nobody takes what our socket still has to say: its direction is over.
            Step::Unwanted => {
                self.unwanted = !self.socket_ended;
                self.socket_ended = true;
                self.end.end(out);
            }
            Step::Failed(error) => self.failed = Some(error),
        }
        Ok(())
    }

    /// The connection closed.
    ///
    /// # Errors
    /// [`ForwardError::Cut`] unless both directions had ended. Reset our socket.
    pub const fn closed(&self) -> Result<(), ForwardError> {
        self.end.closed()
    }

    /// Bytes for our socket that it did not take when they arrived.
    #[must_use]
    pub fn to_socket(&self) -> &[u8] {
        self.waiting.as_slices().0
    }

    /// Our socket took `len` bytes of [`to_socket`](Self::to_socket).
    pub fn written(&mut self, len: usize, out: &mut Vec<u8>) {
        let len = len.min(self.waiting.len());
        self.waiting.drain(..len);
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        self.end.written(len, out);
    }

    /// True once, when our socket is to be shut for writing: all that was sent to it is written.
    pub fn take_shut(&mut self) -> bool {
        let now = self.peer_ended && self.waiting.is_empty() && !self.shut;
        self.shut |= now;
        now
    }

    /// True once, when our socket is to be shut for reading: nobody wants what it may still say.
    pub const fn take_unwanted(&mut self) -> bool {
        std::mem::replace(&mut self.unwanted, false)
    }

    /// Bytes to read from our socket now, at most; zero while it is not to be read.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.socket_ended || self.failed.is_some() { 0 } else { self.end.room() }
    }

    /// Our socket gave `len` bytes, at most [`room`](Self::room): the header to send them behind. Zero where it ended,
    /// which has no bytes to send.
    pub fn read(&mut self, len: usize, out: &mut Vec<u8>) -> Option<Header> {
        if len > 0 {
            return Some(self.end.data(len));
        }
        self.socket_ended = true;
        self.end.end(out);
        None
    }

    /// Our socket broke: tells the peer, which resets its own.
    pub fn broke(&mut self, error: WireError, out: &mut Vec<u8>) {
        if self.failed.is_none() {
            self.end.failed(&error, out);
            self.failed = Some(error);
        }
    }

    /// Our socket's reader is gone, though its writer may go on: tells the peer to send no more.
    pub fn refuse(&mut self, out: &mut Vec<u8>) {
        let waiting = std::mem::take(&mut self.waiting);
        self.end.refuse(out);
        self.end.written(waiting.len(), out);
    }

    /// What the guest said when its socket was connected, once (host only).
    pub fn take_opened(&mut self) -> Option<Open> {
        self.opened.take()
    }

    /// Why one end broke, told by the peer or to it: reset our socket.
    #[must_use]
    pub const fn failure(&self) -> Option<&WireError> {
        self.failed.as_ref()
    }

    /// Whether the host said [`BYE`](crate::frame::FrameId::BYE): it waits for the guest to close the connection, and
    /// only bytes for the guest's socket are left to be written.
    #[must_use]
    pub const fn is_dismissed(&self) -> bool {
        self.dismissed
    }

    /// Whether both directions ended and our socket has been shut: close it. The host says
    /// [`BYE`](crate::frame::FrameId::BYE) now, and closes the connection after the guest: frames of the guest's that
    /// meet a closed connection could take the host's last bytes with them.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.end.is_done() && self.waiting.is_empty() && self.shut
    }
}

/// The error of a connection that the peer did not end by the rules, as our side reports it.
impl From<&ForwardError> for WireError {
    fn from(error: &ForwardError) -> Self {
        match error {
            ForwardError::Cut { .. } => Self::new(ErrorKind::OTHER, error),
            _ => Self::protocol(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameBuffer;
    use crate::limits::{INITIAL_CREDIT, MAX_CREDIT};
    use proptest::prelude::*;

    /// A relay with a pretended socket (what it says, what it heard, how much it takes at a time) and connection.
    struct Side {
        relay: Relay,
        frames: FrameBuffer,
        wire: Vec<u8>,
        says: Vec<u8>,
        heard: Vec<u8>,
        shut: bool,
        takes: usize,
    }

    impl Side {
        fn host(says: Vec<u8>, takes: usize) -> Self {
            Self::new(Relay::host(), Vec::new(), says, takes)
        }

        fn guest(says: Vec<u8>, takes: usize) -> Self {
            let mut wire = Vec::new();
            let relay = Relay::guest(&Open { peer: "tcp:127.0.0.1:80".to_owned() }, &mut wire);
            Self::new(relay, wire, says, takes)
        }

        fn new(relay: Relay, wire: Vec<u8>, says: Vec<u8>, takes: usize) -> Self {
            Self { relay, frames: FrameBuffer::new(), wire, says, heard: Vec::new(), shut: false, takes }
        }

        /// One turn of the rim's loop, `n` bytes at most each way. True where anything moved.
        fn turn(&mut self, n: usize) -> bool {
            let mut moved = false;
            let room = self.relay.room();
            if room > 0 && self.wire.len() < 300_000 {
                let len = n.min(room).min(self.says.len());
                if let Some(header) = self.relay.read(len, &mut self.wire) {
                    self.wire.extend_from_slice(&header.to_bytes());
                    self.wire.extend(self.says.drain(..len));
                }
                moved = true;
            }
            let len = self.relay.to_socket().len().min(self.takes);
            if len > 0 {
                self.heard.extend_from_slice(&self.relay.to_socket()[..len]);
                self.relay.written(len, &mut self.wire);
                moved = true;
            }
            if self.relay.take_shut() {
                assert!(!self.shut);
                self.shut = true;
                moved = true;
            }
            assert!(self.relay.waiting.len() <= MAX_CREDIT as usize, "memory is bounded by the credit");
            moved
        }

        fn hear(&mut self, wire: &[u8]) {
            self.frames.push(wire);
            while let Some(frame) = self.frames.take().unwrap() {
                let (heard, takes) = (&mut self.heard, self.takes);
                let offer = |bytes: &[u8]| {
                    let len = bytes.len().min(takes / 2);
                    heard.extend_from_slice(&bytes[..len]);
                    len
                };
                self.relay.receive(frame, &mut self.wire, offer).unwrap();
            }
        }
    }

    fn carry(from: &mut Side, to: &mut Side, n: usize) -> bool {
        let len = from.wire.len().min(n);
        let wire: Vec<u8> = from.wire.drain(..len).collect();
        to.hear(&wire);
        len > 0
    }

    /// Turns both ends until nothing moves.
    fn settle(host: &mut Side, guest: &mut Side, reads: usize, wire: usize) {
        loop {
            let mut moved = host.turn(reads) | guest.turn(reads);
            moved |= carry(host, guest, wire);
            moved |= carry(guest, host, wire);
            if !moved {
                break;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the sizes, every byte arrives once and in order, each direction ends by itself, both ends are over.
        #[test]
        fn every_byte_arrives_and_both_ends_are_done(
            to_guest in 0usize..2_000_000, to_host in 0usize..2_000_000,
            reads in 1usize..400_000, wire in 1usize..400_000, takes in proptest::array::uniform2(1usize..400_000),
        ) {
            // Tiny steps over megabytes take long and show no more than over kilobytes.
            let least = reads.min(wire).min(takes[0]).min(takes[1]).max(1);
            let bytes = |len: usize, salt: usize| -> Vec<u8> {
                (0..len.min(least * 3000)).map(|n| (n * 31 / 7 + salt).to_le_bytes()[0]).collect()
            };
            let (down, up) = (bytes(to_guest, 1), bytes(to_host, 2));
            let mut host = Side::host(down.clone(), takes[0]);
            let mut guest = Side::guest(up.clone(), takes[1]);
            settle(&mut host, &mut guest, reads, wire);
            prop_assert!(host.relay.is_over() && guest.relay.is_over(), "stuck: {:?} {:?}", host.relay, guest.relay);
            prop_assert!(guest.heard == down && host.heard == up);
            prop_assert!(guest.relay.closed().is_ok() && host.relay.take_opened().is_some());
        }
    }

    #[test]
    fn a_socket_that_takes_nothing_stalls_one_direction_only() {
        let mut host = Side::host(vec![1; 3_000_000], usize::MAX);
        let mut guest = Side::guest(vec![2; 3_000_000], 0);
        settle(&mut host, &mut guest, usize::MAX, 300_000);
        assert!(host.shut && host.heard.len() == 3_000_000);
        assert_eq!(guest.relay.waiting.len(), INITIAL_CREDIT as usize);
        assert_eq!((guest.heard.len(), guest.shut, guest.relay.is_over()), (0, false, false));
    }

    #[test]
    fn a_broken_socket_resets_the_other_end() {
        let mut host = Side::host(vec![1; 10], 0);
        let mut guest = Side::guest(vec![2; 10], 0);
        guest.turn(100);
        let error = WireError::new(ErrorKind::OS, "Connection reset by peer");
        guest.relay.broke(error.clone(), &mut guest.wire);
        assert!(carry(&mut guest, &mut host, usize::MAX));
        assert_eq!((guest.relay.failure(), host.relay.failure()), (Some(&error), Some(&error)));
        assert_eq!((guest.relay.room(), host.relay.room()), (0, 0));
    }

    #[test]
    fn a_reader_that_is_gone_stops_the_far_writer_and_the_other_direction_goes_on() {
        let mut host = Side::host(b"request".to_vec(), usize::MAX);
        let mut guest = Side::guest(vec![2; 3_000_000], usize::MAX);
        host.relay.refuse(&mut host.wire);
        carry(&mut host, &mut guest, usize::MAX);
        assert_eq!(guest.relay.room(), 0);
        assert!(guest.relay.take_unwanted() && !guest.relay.take_unwanted());
        settle(&mut host, &mut guest, usize::MAX, usize::MAX);
        assert_eq!(guest.heard, b"request");
        assert!(host.relay.is_over() && guest.relay.is_over());
    }

    #[test]
    fn a_cut_is_an_error_and_a_close_after_both_ends_is_not() {
        assert!(matches!(
            Side::guest(Vec::new(), 0).relay.closed(),
            Err(ForwardError::Cut { state: "open" })
        ));
        let (mut host, mut guest) = (Side::host(Vec::new(), 1), Side::guest(Vec::new(), 1));
        settle(&mut host, &mut guest, 1, usize::MAX);
        guest.relay.closed().unwrap();
    }
}
