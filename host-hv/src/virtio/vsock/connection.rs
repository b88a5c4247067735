//! One stream connection as a state machine: what happened goes in, what to do comes out. No I/O, no clock.

use std::ops::BitOr;

use super::credit::{ReceiveCredit, SendCredit};
use super::packet::Header;
use super::spec::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest asked; the host's side is still being reached.
    Dialing,
    /// The host asked; the guest has not answered.
    Requested,
    /// Both sides agreed.
    Established,
    /// The guest is done and may reuse its port; bytes it sent before are still on their way to the host.
    Draining,
    /// Nothing is left to do.
    Closed,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A packet came from the guest. The payload of a `ReadWrite` is the caller's to move if the answer
    /// holds [`Todo::ACCEPT`].
    Packet(&'a Header),
    /// The host's side is reached.
    HostConnected,
    /// The host's side ended its writing, and all it wrote was sent to the guest.
    HostEnded,
    /// The host's side is gone: it will neither write nor read.
    HostGone,
    /// The host's side will read no more.
    HostDeaf,
    /// All that the guest sent has reached the host's side.
    Flushed,
    /// The time for answering or closing is over.
    Expired,
}

/// What to do, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Todo(u16);

impl Todo {
    /// Nothing.
    pub const NOTHING: Self = Self(0);
    /// Take the packet's payload.
    pub const ACCEPT: Self = Self(1);
    /// Take the packet's payload and drop it.
    pub const DISCARD: Self = Self(1 << 1);
    /// Tell the host's side that the guest agreed.
    pub const ANNOUNCE: Self = Self(1 << 2);
    /// Tell the host's side that there will be no connection, and close it.
    pub const REFUSE: Self = Self(1 << 3);
    /// End the writing to the host's side once all bytes have gone there.
    pub const END_HOST: Self = Self(1 << 4);
    /// Tell the host's side that nobody reads it.
    pub const DEAFEN_HOST: Self = Self(1 << 5);
    /// Send a reset to the guest.
    pub const RESET: Self = Self(1 << 6);
    /// Start the time allowed for closing.
    pub const START_CLOSE_TIMER: Self = Self(1 << 7);
    /// Drop what waits for the host's side.
    pub const DROP_BYTES: Self = Self(1 << 8);
    /// The guest's port is free: the connection leaves the table.
    pub const RELEASE: Self = Self(1 << 9);

    /// All of `other` is in the set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Todo {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Control packets that wait for a receive buffer; each at most once, so a guest that offers no buffers makes
/// nothing grow.
#[derive(Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    send: SendCredit,
    receive: ReceiveCredit,
    pending: Pending,
    /// Directions the guest ended, as shutdown flags.
    guest_ended: u32,
    /// Directions the host's side ended, as shutdown flags.
    host_ended: u32,
    /// The part of `host_ended` that the guest was told.
    told_ended: u32,
    /// A credit request is out and no credit came since.
    credit_asked: bool,
}

impl Connection {
    /// The guest asks, with `header`. `buf_alloc` is the credit it gets, in bytes.
    pub fn from_guest(header: &Header, buf_alloc: u32) -> Self {
        let mut connection = Self::new(Phase::Dialing, buf_alloc);
        connection.send.learn(header.buf_alloc, header.fwd_cnt);
        connection
    }

    /// The host asks.
    pub fn from_host(buf_alloc: u32) -> Self {
        let mut connection = Self::new(Phase::Requested, buf_alloc);
        connection.pending.request = true;
        connection
    }

    fn new(phase: Phase, buf_alloc: u32) -> Self {
        Self {
            phase,
            send: SendCredit::default(),
            receive: ReceiveCredit::new(buf_alloc),
            pending: Pending::default(),
            guest_ended: 0,
            host_ended: 0,
            told_ended: 0,
            credit_asked: false,
        }
    }

    /// Where the connection is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Feeds one event.
    pub fn handle(&mut self, event: Event<'_>) -> Todo {
        match (self.phase, event) {
            (_, Event::Packet(header)) => self.packet(header),
            (Phase::Dialing, Event::HostConnected) => {
                self.phase = Phase::Established;
                self.pending.response = true;
                Todo::NOTHING
            }
            (Phase::Dialing, Event::HostGone | Event::HostEnded | Event::HostDeaf | Event::Expired) => {
                self.abort()
            }
            // The guest may have agreed already; it must not keep half a connection.
            (Phase::Requested, Event::HostGone | Event::Expired) => self.abort(),
            (Phase::Established, Event::HostEnded) => self.end_host(SHUTDOWN_SEND),
            (Phase::Established, Event::HostDeaf) => self.end_host(SHUTDOWN_RECEIVE),
            (Phase::Established, Event::HostGone) => self.end_host(SHUTDOWN_BOTH),
            (Phase::Established, Event::Expired) => self.abort(),
            (Phase::Draining, Event::Flushed | Event::HostGone | Event::HostDeaf) => {
                self.phase = Phase::Closed;
                Todo::NOTHING
            }
            _ => Todo::NOTHING,
        }
    }

    /// The most bytes to read from the host's side now; `None` when its bytes cannot go anywhere yet.
    pub fn readable(&self) -> Option<u32> {
        let open = self.phase == Phase::Established && !self.host_is_read_out();
        // The guest must see the answer before the first byte.
        (open && !self.pending.response && self.send.available() > 0).then(|| self.send.available())
    }

    /// The host's side has bytes and `readable` says no for want of credit: ask for some, once.
    pub fn ask_credit(&mut self) {
        let open = self.phase == Phase::Established && !self.host_is_read_out();
        if open && self.send.available() == 0 && !self.credit_asked {
            self.credit_asked = true;
            self.pending.credit_request = true;
        }
    }

    /// No more bytes of the host's side will be read: they ended, or the guest wants none.
    pub fn host_is_read_out(&self) -> bool {
        self.host_ended & SHUTDOWN_SEND != 0 || self.guest_ended & SHUTDOWN_RECEIVE != 0
    }

    /// The guest's bytes still go to the host's side.
    pub fn host_reads(&self) -> bool {
        self.host_ended & SHUTDOWN_RECEIVE == 0
    }

    /// `count` bytes of the guest reached the host's side or were dropped.
    pub fn forwarded(&mut self, count: u32) {
        self.receive.forward(count);
        if self.phase == Phase::Established
            && self.guest_ended & SHUTDOWN_SEND == 0
            && self.receive.update_due(self.send.peer_alloc())
        {
            self.pending.credit_update = true;
        }
    }

    /// A control packet waits.
    pub fn has_control(&self) -> bool {
        let pending = &self.pending;
        match self.phase {
            Phase::Requested => pending.request,
            Phase::Established => {
                pending.response
                    || pending.credit_update
                    || pending.credit_request
                    || self.host_ended != self.told_ended
            }
            Phase::Dialing | Phase::Draining | Phase::Closed => false,
        }
    }

    /// Takes the control packet that goes next, as operation and flags; credit updates come last because any
    /// other packet carries the same news.
    pub fn next_control(&mut self) -> Option<(Op, u32)> {
        if !self.has_control() {
            return None;
        }
        let pending = &mut self.pending;
        if std::mem::take(&mut pending.request) {
            return Some((Op::Request, 0));
        }
        if std::mem::take(&mut pending.response) {
            return Some((Op::Response, 0));
        }
        if self.host_ended != self.told_ended {
            self.told_ended = self.host_ended;
            return Some((Op::Shutdown, self.host_ended));
        }
        if std::mem::take(&mut pending.credit_request) {
            return Some((Op::CreditRequest, 0));
        }
        std::mem::take(&mut pending.credit_update).then_some((Op::CreditUpdate, 0))
    }

    /// `count` bytes go to the guest in one packet.
    pub fn sent(&mut self, count: u32) {
        self.send.spend(count);
    }

    /// `buf_alloc` and `fwd_cnt` for a packet that goes to the guest now.
    pub fn tell_credit(&mut self) -> (u32, u32) {
        self.pending.credit_update = false;
        self.receive.tell()
    }

    fn packet(&mut self, header: &Header) -> Todo {
        if matches!(self.phase, Phase::Draining | Phase::Closed) {
            return Todo::NOTHING;
        }
        self.send.learn(header.buf_alloc, header.fwd_cnt);
        if self.send.available() > 0 {
            self.credit_asked = false;
        }
        match (self.phase, header.op) {
            (_, Op::Reset) => self.guest_gone(Todo::NOTHING),
            (Phase::Dialing, Op::Request) => Todo::NOTHING,
            (Phase::Dialing, Op::Shutdown) => self.guest_gone(Todo::RESET),
            (Phase::Requested, Op::Response) => {
                self.phase = Phase::Established;
                Todo::ANNOUNCE
            }
            (Phase::Established, Op::ReadWrite) => self.data(header.len),
            (Phase::Established, Op::CreditRequest) => {
                self.pending.credit_update = true;
                Todo::NOTHING
            }
            (Phase::Established, Op::Shutdown) => self.end_guest(header.flags & SHUTDOWN_BOTH),
            (Phase::Established, Op::CreditUpdate | Op::Request | Op::Response) => Todo::NOTHING,
            _ => self.abort(),
        }
    }

    fn data(&mut self, count: u32) -> Todo {
        if self.guest_ended & SHUTDOWN_SEND != 0 || !self.receive.receive(count) {
            return self.abort();
        }
        if self.host_reads() { Todo::ACCEPT } else { Todo::DISCARD }
    }

    fn end_guest(&mut self, flags: u32) -> Todo {
        let new = flags & !self.guest_ended;
        self.guest_ended |= flags;
        if self.guest_ended == SHUTDOWN_BOTH {
            // Nothing more can come from the guest, and it waits for this before it frees the port.
            return self.guest_gone(Todo::RESET);
        }
        let mut todo = Todo::NOTHING;
        if new & SHUTDOWN_SEND != 0 {
            todo = todo | Todo::END_HOST;
        }
        if new & SHUTDOWN_RECEIVE != 0 {
            todo = todo | Todo::DEAFEN_HOST;
        }
        todo
    }

    fn end_host(&mut self, flags: u32) -> Todo {
        let before = self.host_ended;
        self.host_ended |= flags;
        let mut todo = Todo::NOTHING;
        if !self.host_reads() {
            todo = todo | Todo::DROP_BYTES;
        }
        if self.host_ended == SHUTDOWN_BOTH && before != SHUTDOWN_BOTH {
            todo = todo | Todo::START_CLOSE_TIMER;
        }
        todo
    }

    /// The guest has ended both directions or forgotten the connection.
    fn guest_gone(&mut self, todo: Todo) -> Todo {
        match self.phase {
            Phase::Established if self.host_reads() => {
                self.phase = Phase::Draining;
                todo | Todo::RELEASE | Todo::DEAFEN_HOST | Todo::END_HOST
            }
            Phase::Requested => {
                self.phase = Phase::Closed;
                todo | Todo::RELEASE | Todo::REFUSE
            }
            _ => {
                self.phase = Phase::Closed;
                todo | Todo::RELEASE
            }
        }
    }

    /// The connection ends here and now, for both sides.
    fn abort(&mut self) -> Todo {
        let refuse = if self.phase == Phase::Requested { Todo::REFUSE } else { Todo::NOTHING };
        self.phase = Phase::Closed;
        Todo::RESET | Todo::RELEASE | refuse
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::*;
    use crate::virtio::vsock::spec::TYPE_STREAM;

    fn header(op: Op, flags: u32, len: u32) -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 1,
            dst_port: 2,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: 4096,
            fwd_cnt: 0,
        }
    }

    fn packet(connection: &mut Connection, op: Op, flags: u32, len: u32) -> Todo {
        connection.handle(Event::Packet(&header(op, flags, len)))
    }

    fn established() -> Connection {
        let mut connection = Connection::from_guest(&header(Op::Request, 0, 0), 1024);
        connection.handle(Event::HostConnected);
        assert_eq!(connection.next_control(), Some((Op::Response, 0)));
        connection
    }

    #[test]
    fn a_request_is_answered_when_the_host_is_reached() {
        let mut connection = Connection::from_guest(&header(Op::Request, 0, 0), 1024);
        assert!(!connection.has_control());
        assert_eq!(connection.readable(), None);
        assert_eq!(connection.handle(Event::HostConnected), Todo::NOTHING);
        assert_eq!(connection.readable(), None, "the answer comes before the first byte");
        assert_eq!(connection.next_control(), Some((Op::Response, 0)));
        assert_eq!(connection.readable(), Some(4096));
    }

    #[test]
    fn a_host_that_cannot_be_reached_resets_the_guest() {
        let mut connection = Connection::from_guest(&header(Op::Request, 0, 0), 1024);
        assert_eq!(connection.handle(Event::HostGone), Todo::RESET | Todo::RELEASE);
        assert_eq!(connection.phase(), Phase::Closed);
    }

    #[test]
    fn only_a_response_makes_a_request_a_connection() {
        let mut connection = Connection::from_host(1024);
        assert_eq!(connection.next_control(), Some((Op::Request, 0)));
        assert_eq!(packet(&mut connection, Op::Response, 0, 0), Todo::ANNOUNCE);

        let mut connection = Connection::from_host(1024);
        let todo = packet(&mut connection, Op::ReadWrite, 0, 5);
        assert_eq!(todo, Todo::RESET | Todo::RELEASE | Todo::REFUSE);
    }

    #[test]
    fn a_shutdown_of_both_directions_in_two_parts_is_one() {
        let mut connection = established();
        assert_eq!(packet(&mut connection, Op::Shutdown, SHUTDOWN_SEND, 0), Todo::END_HOST);
        let todo = packet(&mut connection, Op::Shutdown, SHUTDOWN_RECEIVE, 0);
        assert!(todo.contains(Todo::RESET | Todo::RELEASE));
        assert_eq!(connection.phase(), Phase::Draining);
        connection.handle(Event::Flushed);
        assert_eq!(connection.phase(), Phase::Closed);
    }

    #[test]
    fn a_shutdown_without_flags_means_nothing() {
        assert_eq!(packet(&mut established(), Op::Shutdown, 0, 0), Todo::NOTHING);
        assert_eq!(packet(&mut established(), Op::Shutdown, !SHUTDOWN_BOTH, 0), Todo::NOTHING);
    }

    #[test]
    fn bytes_after_their_end_are_an_offence() {
        let mut connection = established();
        packet(&mut connection, Op::Shutdown, SHUTDOWN_SEND, 0);
        assert_eq!(packet(&mut connection, Op::ReadWrite, 0, 1), Todo::RESET | Todo::RELEASE);
    }

    #[test]
    fn the_hosts_end_is_told_once_and_grows() {
        let mut connection = established();
        connection.handle(Event::HostEnded);
        assert_eq!(connection.next_control(), Some((Op::Shutdown, SHUTDOWN_SEND)));
        assert_eq!(connection.next_control(), None);
        let todo = connection.handle(Event::HostGone);
        assert!(todo.contains(Todo::START_CLOSE_TIMER | Todo::DROP_BYTES));
        assert_eq!(connection.next_control(), Some((Op::Shutdown, SHUTDOWN_BOTH)));
        assert_eq!(connection.handle(Event::HostGone), Todo::DROP_BYTES, "the timer starts once");
    }

    #[test]
    fn bytes_for_a_deaf_host_are_taken_and_dropped() {
        let mut connection = established();
        connection.handle(Event::HostDeaf);
        assert_eq!(connection.next_control(), Some((Op::Shutdown, SHUTDOWN_RECEIVE)));
        assert_eq!(packet(&mut connection, Op::ReadWrite, 0, 10), Todo::DISCARD);
        assert!(connection.readable().is_some(), "the host may still write");
    }

    #[test]
    fn credit_is_asked_for_once_until_some_comes() {
        let mut connection = established();
        connection.sent(4096);
        connection.ask_credit();
        connection.ask_credit();
        assert_eq!(connection.next_control(), Some((Op::CreditRequest, 0)));
        // An answer that brings none is no reason to ask again.
        packet(&mut connection, Op::CreditUpdate, 0, 0);
        connection.ask_credit();
        assert_eq!(connection.next_control(), None);
        let more = Header { fwd_cnt: 1, ..header(Op::CreditUpdate, 0, 0) };
        connection.handle(Event::Packet(&more));
        assert_eq!(connection.readable(), Some(1));
    }

    fn events() -> impl Strategy<Value = (u16, u32, u32)> {
        (prop_oneof![Just(0u16), 1u16..9, 100u16..106], any::<u32>(), 0u32..2000)
    }

    proptest! {
        /// Whatever comes in whatever order: no panic, credit kept, and what is closed stays closed and silent.
        #[test]
        fn no_order_of_events_confuses_a_connection(
            from_host in any::<bool>(),
            steps in proptest::collection::vec(events(), 0..60),
        ) {
            let mut connection = if from_host {
                Connection::from_host(1024)
            } else {
                Connection::from_guest(&header(Op::Request, 0, 0), 1024)
            };
            let mut waiting = 0;
            for (kind, flags, len) in steps {
                let before = connection.phase();
                let header = header(Op::from(kind), flags, len);
                let todo = connection.handle(match kind {
                    100 => Event::HostConnected,
                    101 => Event::HostEnded,
                    102 => Event::HostGone,
                    103 => Event::HostDeaf,
                    104 => Event::Flushed,
                    105 => Event::Expired,
                    _ => Event::Packet(&header),
                });
                if todo.contains(Todo::ACCEPT) {
                    waiting += len;
                    prop_assert!(waiting <= 1024, "more than the guest had credit for");
                    let some = waiting / 2;
                    connection.forwarded(some);
                    waiting -= some;
                }
                if todo.contains(Todo::DISCARD) {
                    connection.forwarded(len);
                }
                if before == Phase::Closed {
                    prop_assert_eq!(todo, Todo::NOTHING);
                    prop_assert_eq!(connection.phase(), Phase::Closed);
                }
                if matches!(connection.phase(), Phase::Draining | Phase::Closed) {
                    prop_assert!(!connection.has_control());
                    prop_assert_eq!(connection.readable(), None);
                }
                connection.next_control();
            }
        }
    }
}
