//! A forwarded connection's buffers: [`End`] with the bytes that wait on either side.
//!
//! ```text
//!  connection --[frames]--> waiting --> socket      waiting: at most the credit we granted
//!  connection <-- outgoing <----------- socket      outgoing: one data frame, and a few small ones
//! ```
//! Either way may stall without stalling the other: what our socket does not take is kept (the credit bounds it) while
//! the connection is read on, and our socket is read only while the peer has granted credit and the last frame is gone.
//! Payloads are not copied on the fast path: a socket's bytes are read behind the room for their header, and arriving
//! ones are offered to the socket from the receive buffer.

use std::collections::VecDeque;

use super::{End, ForwardError, Open, Step};
use crate::error::{ErrorKind, WireError};
use crate::frame::{self, FrameBuffer, FrameId};
use crate::limits::{DATA_LEN, HEADER_LEN};

/// The first read's size. It doubles while reads fill it, so that a quiet connection costs little.
const FIRST_READ: usize = 16 * 1024;
/// With more than this unsent, our socket is not read.
const UNSENT: usize = 1024;

/// Where a forwarded connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Bytes may come and go.
    Open,
    /// Both directions ended, and our socket has been shut: close both.
    Done,
    /// One end broke: reset our socket. The peer has been told, or told us.
    Failed(WireError),
}

/// One end of a forwarded connection, with its buffers. The rim reads, writes, and asks [`phase`](Self::phase).
#[derive(Debug)]
pub struct Relay {
    end: End,
    is_host: bool,
    frames: FrameBuffer,
    outgoing: Outgoing,
    waiting: VecDeque<u8>,
    next_read: usize,
    opened: Option<Open>,
    peer_ended: bool,
    shut: bool,
    socket_ended: bool,
    bye: bool,
    failed: Option<WireError>,
}

impl Relay {
    /// The host's end, whose request the rim has sent. `frames` may hold bytes that arrived already.
    #[must_use]
    pub fn host(frames: FrameBuffer) -> Self {
        Self::new(End::host(), true, frames)
    }

    /// The guest's end, whose socket is connected. `frames` may hold bytes that arrived already: offer them with
    /// [`arrived`](Self::arrived) and a length of `None`.
    #[must_use]
    pub fn guest(open: &Open, frames: FrameBuffer) -> Self {
        let mut out = Vec::new();
        let mut relay = Self::new(End::guest(open, &mut out), false, frames);
        relay.outgoing.push(&out);
        relay
    }

    fn new(end: End, is_host: bool, frames: FrameBuffer) -> Self {
        Self {
            end,
            is_host,
            frames,
            outgoing: Outgoing::default(),
            waiting: VecDeque::new(),
            next_read: FIRST_READ,
            opened: None,
            peer_ended: false,
            shut: false,
            socket_ended: false,
            bye: false,
            failed: None,
        }
    }

    /// Room to read the connection into.
    pub fn connection_space(&mut self) -> &mut [u8] {
        self.frames.space()
    }

    /// The rim has read `len` bytes into [`connection_space`](Self::connection_space) (zero: it closed), or `None` to
    /// look at what was there from the start. `offer` writes to our socket without waiting and says how much it took.
    ///
    /// # Errors
    /// [`ForwardError`]: the peer broke the protocol or cut the connection. Reset our socket.
    pub fn arrived(
        &mut self,
        len: Option<usize>,
        mut offer: impl FnMut(&[u8]) -> usize,
    ) -> Result<(), ForwardError> {
        if len == Some(0) {
            self.bye = true;
            return if self.failed.is_some() { Ok(()) } else { self.end.closed() };
        }
        self.frames.filled(len.unwrap_or(0));
        let mut out = Vec::new();
        while let Some(frame) = self.frames.take().map_err(ForwardError::Frame)? {
            match self.end.receive(frame)? {
                Step::Nothing | Step::Room => (),
                Step::Open(open) => self.opened = Some(open),
                Step::Bytes(bytes) => {
                    let taken = if self.waiting.is_empty() { offer(bytes).min(bytes.len()) } else { 0 };
                    self.end.written(taken, &mut out);
                    self.waiting.extend(&bytes[taken..]);
                }
                Step::PeerEnded => self.peer_ended = true,
                // Nobody takes what our socket still has to say: its direction is over.
                Step::Unwanted => {
                    self.socket_ended = true;
                    self.end.end(&mut out);
                }
                Step::Failed(error) => self.failed = Some(error),
                Step::Bye => self.bye = true,
            }
        }
        self.outgoing.push(&out);
        self.say_bye();
        Ok(())
    }

    /// Bytes for our socket that it did not take when they arrived.
    #[must_use]
    pub fn to_socket(&self) -> &[u8] {
        self.waiting.as_slices().0
    }

    /// Our socket took `len` bytes of [`to_socket`](Self::to_socket).
    pub fn written(&mut self, len: usize) {
        let len = len.min(self.waiting.len());
        self.waiting.drain(..len);
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        self.with_out(|end, out| end.written(len, out));
    }

    /// True once, when our socket is to be shut for writing: all that was sent to it is written.
    pub fn take_shut(&mut self) -> bool {
        let now = self.peer_ended && self.waiting.is_empty() && !self.shut;
        self.shut |= now;
        now
    }

    /// Room to read our socket into, or `None` while it is not to be read.
    pub fn socket_space(&mut self) -> Option<&mut [u8]> {
        let room = self.end.room().min(DATA_LEN as usize);
        if room == 0 || self.socket_ended || self.failed.is_some() || self.outgoing.len() > UNSENT {
            return None;
        }
        Some(self.outgoing.data_space(room.min(self.next_read)))
    }

    /// Whether [`socket_space`](Self::socket_space) has room.
    #[must_use]
    pub fn reads_socket(&self) -> bool {
        !self.socket_ended && self.failed.is_none() && self.end.room() > 0 && self.outgoing.len() <= UNSENT
    }

    /// The rim has read `len` bytes into [`socket_space`](Self::socket_space); zero where our socket ended.
    pub fn read(&mut self, len: usize) {
        if len == 0 {
            self.socket_ended = true;
            self.with_out(End::end);
            self.say_bye();
            return;
        }
        let header = self.end.data(len).to_bytes();
        self.outgoing.data_filled(header, len);
        if len == self.next_read {
            self.next_read = (self.next_read * 2).min(DATA_LEN as usize);
        }
    }

    /// Our socket broke: tells the peer, which resets its own.
    pub fn broke(&mut self, error: &WireError) {
        if self.failed.is_none() {
            self.with_out(|end, out| end.failed(error, out));
            self.failed = Some(error.clone());
        }
    }

    /// Our socket's reader is gone, though its writer may go on: tells the peer to send no more.
    pub fn refuse(&mut self) {
        let waiting = self.waiting.len();
        self.waiting = VecDeque::new();
        self.with_out(|end, out| {
            end.refuse(out);
            end.written(waiting, out);
        });
    }

    /// Frames to write to the connection.
    #[must_use]
    pub fn to_connection(&self) -> &[u8] {
        self.outgoing.bytes()
    }

    /// The connection took `len` bytes of [`to_connection`](Self::to_connection).
    pub fn sent(&mut self, len: usize) {
        self.outgoing.sent(len);
    }

    /// What the guest said when its socket was connected, once (host only).
    pub fn take_opened(&mut self) -> Option<Open> {
        self.opened.take()
    }

    /// Where it stands. [`Phase::Done`] and [`Phase::Failed`] only when nothing is left to send.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match &self.failed {
            Some(error) if self.outgoing.len() == 0 => Phase::Failed(error.clone()),
            None if self.is_over() && self.outgoing.len() == 0 && self.bye => Phase::Done,
            _ => Phase::Open,
        }
    }

    /// The error, as soon as there is one: what is left to send is for the peer's information alone.
    #[must_use]
    pub const fn failure(&self) -> Option<&WireError> {
        self.failed.as_ref()
    }

    fn is_over(&self) -> bool {
        self.end.is_done() && self.waiting.is_empty() && self.shut
    }

    fn say_bye(&mut self) {
        if self.is_host && !self.bye && self.failed.is_none() && self.end.is_done() {
            self.bye = true;
            self.with_out(|_, out| frame::put_raw(FrameId::BYE, 0, &[], out));
        }
    }

    fn with_out(&mut self, act: impl FnOnce(&mut End, &mut Vec<u8>)) {
        let mut out = Vec::new();
        act(&mut self.end, &mut out);
        self.outgoing.push(&out);
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

/// Frames on their way out. The buffer stays initialised between frames, so that a read costs no clearing.
#[derive(Debug, Default)]
struct Outgoing {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outgoing {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn sent(&mut self, len: usize) {
        self.start = (self.start + len).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.buffer[self.end..self.end + bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    fn data_space(&mut self, len: usize) -> &mut [u8] {
        self.reserve(HEADER_LEN + len);
        let from = self.end + HEADER_LEN;
        &mut self.buffer[from..from + len]
    }

    fn data_filled(&mut self, header: [u8; HEADER_LEN], len: usize) {
        self.buffer[self.end..self.end + HEADER_LEN].copy_from_slice(&header);
        self.end += HEADER_LEN + len;
    }

    fn reserve(&mut self, len: usize) {
        if self.buffer.len() - self.end < len && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < len {
            self.buffer.resize(self.end + len, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::INITIAL_CREDIT;
    use proptest::prelude::*;

    fn open() -> Open {
        Open { peer: "tcp:127.0.0.1:80".to_owned() }
    }

    /// A relay with a pretended socket: what it says, what it heard, and how much of that it takes at a time.
    struct Side {
        relay: Relay,
        says: Vec<u8>,
        heard: Vec<u8>,
        shut: bool,
        takes: usize,
    }

    impl Side {
        fn new(relay: Relay, says: Vec<u8>, takes: usize) -> Self {
            Self { relay, says, heard: Vec::new(), shut: false, takes }
        }

        /// One turn of the rim's loop, `n` bytes at most each way. True where anything moved.
        fn turn(&mut self, n: usize) -> bool {
            let mut moved = false;
            if self.relay.reads_socket() {
                let space = self.relay.socket_space().unwrap();
                let len = n.min(space.len()).min(self.says.len());
                space[..len].copy_from_slice(&self.says[..len]);
                self.says.drain(..len);
                self.relay.read(len);
                moved = true;
            }
            let len = self.relay.to_socket().len().min(self.takes);
            if len > 0 {
                self.heard.extend_from_slice(&self.relay.to_socket()[..len]);
                self.relay.written(len);
                moved = true;
            }
            if self.relay.take_shut() {
                assert!(!self.shut);
                self.shut = true;
                moved = true;
            }
            assert!(self.relay.waiting.len() <= INITIAL_CREDIT as usize, "memory is bounded by the credit");
            moved
        }

        fn hear(&mut self, wire: &[u8]) {
            let (heard, takes) = (&mut self.heard, self.takes);
            self.relay.connection_space()[..wire.len()].copy_from_slice(wire);
            self.relay
                .arrived(Some(wire.len()), |bytes| {
                    let len = bytes.len().min(takes / 2);
                    heard.extend_from_slice(&bytes[..len]);
                    len
                })
                .unwrap();
        }
    }

    fn carry(from: &mut Relay, to: &mut Side, n: usize) -> bool {
        let wire = from.to_connection();
        let len = wire.len().min(n).min(to.relay.connection_space().len());
        if len > 0 {
            let wire = wire[..len].to_vec();
            to.hear(&wire);
            from.sent(len);
        }
        len > 0
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever the sizes, every byte arrives once and in order, each direction ends by itself, both relays end.
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
            let mut host = Side::new(Relay::host(FrameBuffer::new()), down.clone(), takes[0]);
            let mut guest = Side::new(Relay::guest(&open(), FrameBuffer::new()), up.clone(), takes[1]);
            loop {
                let mut moved = host.turn(reads) | guest.turn(reads);
                moved |= carry(&mut host.relay, &mut guest, wire);
                moved |= carry(&mut guest.relay, &mut host, wire);
                if host.relay.phase() == Phase::Done && guest.relay.phase() == Phase::Done { break; }
                prop_assert!(moved, "stuck: host {:?}, guest {:?}", host.relay, guest.relay);
            }
            prop_assert!(guest.heard == down && host.heard == up);
            prop_assert!(host.shut && guest.shut);
            prop_assert!(host.relay.take_opened().is_some());
        }
    }

    #[test]
    fn a_socket_that_takes_nothing_stalls_one_direction_only() {
        let mut host = Side::new(Relay::host(FrameBuffer::new()), vec![1; 3_000_000], usize::MAX);
        let mut guest = Side::new(Relay::guest(&open(), FrameBuffer::new()), vec![2; 3_000_000], 0);
        while !host.shut {
            let moved = host.turn(usize::MAX) | guest.turn(usize::MAX);
            assert!(
                carry(&mut host.relay, &mut guest, 300_000)
                    | carry(&mut guest.relay, &mut host, 300_000)
                    | moved
            );
        }
        assert_eq!(host.heard.len(), 3_000_000);
        assert_eq!(guest.relay.waiting.len(), INITIAL_CREDIT as usize);
        assert_eq!((guest.heard.len(), guest.shut), (0, false));
    }

    #[test]
    fn a_broken_socket_resets_the_other_end() {
        let mut host = Side::new(Relay::host(FrameBuffer::new()), vec![1; 10], 0);
        let mut guest = Side::new(Relay::guest(&open(), FrameBuffer::new()), vec![2; 10], 0);
        guest.turn(100);
        let error = WireError::new(ErrorKind::OS, "Connection reset by peer");
        guest.relay.broke(&error);
        assert_eq!(guest.relay.phase(), Phase::Open, "the peer has not been told yet");
        assert!(carry(&mut guest.relay, &mut host, usize::MAX));
        assert_eq!(guest.relay.phase(), Phase::Failed(error.clone()));
        assert_eq!(host.relay.phase(), Phase::Failed(error));
    }

    #[test]
    fn a_reader_that_is_gone_stops_the_far_writer_and_the_other_direction_goes_on() {
        let mut host = Side::new(Relay::host(FrameBuffer::new()), b"request".to_vec(), usize::MAX);
        let mut guest = Side::new(Relay::guest(&open(), FrameBuffer::new()), vec![2; 3_000_000], usize::MAX);
        host.relay.refuse();
        carry(&mut host.relay, &mut guest, usize::MAX);
        assert!(!guest.relay.reads_socket());
        loop {
            host.turn(usize::MAX);
            guest.turn(usize::MAX);
            let moved = carry(&mut host.relay, &mut guest, usize::MAX);
            if !(moved | carry(&mut guest.relay, &mut host, usize::MAX)) {
                break;
            }
        }
        assert_eq!(guest.heard, b"request");
        assert!(guest.shut && host.shut);
        assert_eq!((host.relay.phase(), guest.relay.phase()), (Phase::Done, Phase::Done));
    }

    #[test]
    fn a_cut_is_an_error_and_a_close_after_both_ends_is_not() {
        let mut guest = Relay::guest(&open(), FrameBuffer::new());
        assert!(matches!(guest.arrived(Some(0), |_| 0), Err(ForwardError::Cut { state: "open" })));
        let mut host = Side::new(Relay::host(FrameBuffer::new()), Vec::new(), usize::MAX);
        let mut guest = Side::new(Relay::guest(&open(), FrameBuffer::new()), Vec::new(), usize::MAX);
        host.turn(1);
        guest.turn(1);
        carry(&mut host.relay, &mut guest, usize::MAX);
        carry(&mut guest.relay, &mut host, usize::MAX);
        assert!(guest.relay.take_shut() && host.relay.take_shut());
        assert_eq!(guest.relay.phase(), Phase::Open, "the host has not said that it has everything");
        guest.relay.arrived(Some(0), |_| 0).unwrap();
        assert_eq!(guest.relay.phase(), Phase::Done);
    }
}
