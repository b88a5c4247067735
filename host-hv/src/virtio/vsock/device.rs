//! The device: rings on one side, streams on the other.

use std::net::Shutdown;
use std::time::Instant;

use thiserror::Error;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;

use super::HANDSHAKE_TIMEOUT;
use super::connection::{Connection, Event, Phase, Todo};
use super::deadline::{Deadlines, Kind};
use super::host::{Dial, DialError, Greeting, Host};
use super::packet::Header;
use super::redial::{Due, Redials};
use super::spec::{
    CONFIG_SIZE, EVENT_QUEUE, EVENT_SIZE, EVENT_TRANSPORT_RESET, GUEST_CID_END, HEADER_SIZE, HOST_CID,
    MIN_GUEST_CID, Op, RX_QUEUE, SHUTDOWN_BOTH, TX_QUEUE, TYPE_STREAM, VIRTIO_VSOCK_F_STREAM,
};
use super::table::{Key, Resets, Stream, StreamId, Table};
use crate::io::{ByteRing, Endpoint, StreamEnd};
use crate::virtio::{Device, Memory, Ring, RingError};

/// Entries per ring: Linux keeps the receive ring full, and each entry costs it a page.
const RING_SIZES: [u16; 3] = [1024, 1024, 64];

/// What a new connection's buffer is divided by, once there are so many. With the defaults a guest can fill 248 MiB, and
/// only if that many programs on the host read nothing.
const SHARES: [(usize, u32); 3] = [(32, 4), (256, 16), (1024, 64)];

/// The smallest buffer.
const MIN_BUFFER: u32 = 4096;

/// What a guest may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time, those that only drain included.
    pub connections: usize,
    /// Bytes kept per connection for a host that does not read, while there are few connections.
    pub buffer: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 8192, buffer: 1024 * 1024 }
    }
}

/// News of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There may be bytes to read.
    pub readable: bool,
    /// There may be room to write.
    pub writable: bool,
    /// The other side writes no more.
    pub ended: bool,
    /// The other side neither writes nor reads any more.
    pub hung_up: bool,
}

/// Why the host cannot have a connection to the guest.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ConnectError {
    #[error("The guest has {limit} connections, the most allowed")]
    Limit { limit: usize },
    #[error("The connection cannot be watched")]
    Watch(#[source] std::io::Error),
    #[error("Cid {cid} cannot be a guest's: it must be 3 to 0xfffffffe")]
    Cid { cid: u64 },
}

/// A vsock device for one guest.
pub struct Vsock {
    pub(super) cid: u64,
    limits: Limits,
    pub(super) host: Box<dyn Host>,
    clock: Box<dyn Fn() -> Instant>,
    pub(super) memory: Option<Memory>,
    pub(super) rings: [Option<Ring>; 3],
    pub(super) table: Table,
    pub(super) resets: Resets,
    deadlines: Deadlines,
    redials: Redials,
    /// The receive ring had no buffer for us: wait for its kick.
    pub(super) starved: bool,
    /// The transmit ring may hold chains.
    pub(super) transmitting: bool,
    transport_reset: bool,
}

impl Vsock {
    /// A device for the guest with this cid.
    pub fn new(cid: u64, limits: Limits, host: Box<dyn Host>) -> Result<Self, ConnectError> {
        Self::with_clock(cid, limits, host, Box::new(Instant::now))
    }

    /// As [`new`](Self::new), with a clock of the caller's.
    pub fn with_clock(
        cid: u64,
        limits: Limits,
        host: Box<dyn Host>,
        clock: Box<dyn Fn() -> Instant>,
    ) -> Result<Self, ConnectError> {
        if !(MIN_GUEST_CID..GUEST_CID_END).contains(&cid) {
            return Err(ConnectError::Cid { cid });
        }
        Ok(Self {
            cid,
            limits,
            host,
            clock,
            memory: None,
            rings: [None, None, None],
            table: Table::default(),
            resets: Resets::default(),
            deadlines: Deadlines::default(),
            redials: Redials::default(),
            starved: false,
            transmitting: false,
            transport_reset: false,
        })
    }

    /// The guest's cid.
    pub fn cid(&self) -> u64 {
        self.cid
    }

    /// Streams at present.
    pub fn streams(&self) -> usize {
        self.table.len()
    }

    /// Bytes kept for hosts that do not read.
    pub fn buffered(&self) -> usize {
        self.table.buffered()
    }

    /// Asks the guest for a connection to `port`, for `endpoint`. `from` is the cid that asks, and its port unless
    /// any will do.
    pub fn connect(
        &mut self,
        mut endpoint: Endpoint,
        port: u32,
        from: (u64, Option<u32>),
        greeting: Greeting,
    ) -> Result<StreamId, ConnectError> {
        if self.table.len() >= self.limits.connections {
            if greeting == Greeting::Line {
                say(&mut endpoint, "ERR the guest has too many connections\n");
            }
            return Err(ConnectError::Limit { limit: self.limits.connections });
        }
        let (peer_cid, peer_port) = from;
        let peer_port = peer_port.unwrap_or_else(|| self.table.free_port(peer_cid, port));
        let key = Key { peer_cid, peer_port, guest_port: port };
        if let Some(old) = self.table.find(&key) {
            self.forget(old);
        }
        let id = self.table.insert(key, Connection::from_host(self.credit()), endpoint, greeting);
        if let Some(stream) = self.table.get_mut(id)
            && let Err(error) = self.host.watch(id, &mut stream.endpoint)
        {
            self.table.remove(id);
            return Err(ConnectError::Watch(error));
        }
        self.start_deadline(Kind::Handshake, id);
        self.table.queue_turn(id);
        Ok(id)
    }

    /// The endpoint of a stream has news.
    pub fn stream_ready(&mut self, id: StreamId, news: Readiness) {
        let Some(stream) = self.table.get_mut(id) else { return };
        let hung_up = news.hung_up;
        stream.ended |= news.ended || hung_up;
        stream.hung_up |= hung_up;
        stream.readable |= news.readable || stream.ended;
        if news.writable {
            stream.writable = true;
            self.flush(id);
        }
        let Some(stream) = self.table.get_mut(id) else { return };
        // Bytes of a host that is gone still go to the guest, unless nobody reads them or their end was seen.
        let settled = stream.machine.phase() != Phase::Established || stream.machine.host_is_read_out();
        if hung_up && settled {
            self.feed(id, Event::HostGone);
        }
        self.table.queue_turn(id);
    }

    /// The endpoint of a stream is a pipe and was named in its wake list.
    pub fn pipe_ready(&mut self, id: StreamId) {
        let Some(Stream { endpoint: Endpoint::Pipe(pipe), machine, .. }) = self.table.get(id) else { return };
        let news =
            Readiness { readable: true, writable: true, ended: pipe.is_ended(), hung_up: pipe.is_closed() };
        if machine.phase() == Phase::Dialing && pipe.is_accepted() {
            self.feed(id, Event::HostConnected);
        }
        self.stream_ready(id, news);
    }

    /// When [`run`](Device::run) must be called though nothing happens.
    pub fn deadline(&mut self) -> Option<Instant> {
        let table = &self.table;
        let next = self.deadlines.next(|kind, id, serial| waits(table, kind, id, serial));
        next.into_iter().chain(self.redials.next()).min()
    }

    /// Tells the guest that every connection is gone, as after a restore, and closes them.
    pub fn transport_reset(&mut self) {
        self.close_all();
        self.transport_reset = true;
    }

    /// A packet from the guest that is no data for an established connection's open stream.
    pub(super) fn packet(&mut self, header: &Header) -> Option<(StreamId, Todo)> {
        let key = Key::of(header);
        if header.src_cid != self.cid {
            tracing::debug!(cid = header.src_cid, "The guest sent a packet in another's name");
            return None;
        }
        if header.kind != TYPE_STREAM {
            self.refuse(key, header);
            return None;
        }
        let mut found = self.table.find(&key);
        if header.op == Op::Request
            && let Some(id) = found
            && self.table.get(id).is_some_and(|stream| stream.machine.phase() != Phase::Dialing)
        {
            // The guest reuses the port, so it knows nothing of the old connection: no reset, it would hit the new.
            self.forget(id);
            found = None;
        }
        match found {
            Some(id) => Some((id, self.feed(id, Event::Packet(header)))),
            None if header.op == Op::Request => {
                if !self.redials.contains(&key) {
                    self.guest_connects(key, header, None);
                }
                None
            }
            None => {
                self.redials.forget(&key);
                self.refuse(key, header);
                None
            }
        }
    }

    /// The buffer a new connection may have: less when there are many, so that all together stay within bounds.
    fn credit(&self) -> u32 {
        let share = SHARES.iter().rev().find(|(connections, _)| self.table.len() >= *connections);
        let divisor = share.map_or(1, |(_, divisor)| *divisor);
        (self.limits.buffer / divisor).max(MIN_BUFFER)
    }

    fn refuse(&mut self, key: Key, header: &Header) {
        if header.op != Op::Reset {
            self.resets.push(key);
        }
    }

    /// `until` is set when the host has been tried before.
    fn guest_connects(&mut self, key: Key, header: &Header, until: Option<Instant>) {
        if self.table.len() >= self.limits.connections {
            tracing::warn!(
                cid = self.cid,
                limit = self.limits.connections,
                "The guest has too many connections"
            );
            return self.refuse(key, header);
        }
        let (endpoint, ready) = match self.host.dial(&key) {
            Ok(Dial::Ready(endpoint)) => (endpoint, true),
            Ok(Dial::Pending(pipe)) => (Endpoint::Pipe(pipe), false),
            Err(error) => {
                let now = (self.clock)();
                let busy = matches!(error, DialError::Busy { .. });
                if busy && self.redials.again(*header, now, until.unwrap_or(now + HANDSHAKE_TIMEOUT)) {
                    return;
                }
                tracing::debug!(cid = self.cid, port = key.peer_port, %error, "The guest's connection is refused");
                return self.refuse(key, header);
            }
        };
        let machine = Connection::from_guest(header, self.credit());
        let id = self.table.insert(key, machine, endpoint, Greeting::None);
        if let Some(stream) = self.table.get_mut(id)
            && let Err(error) = self.host.watch(id, &mut stream.endpoint)
        {
            tracing::warn!(%error, "Failed to watch a connection");
            self.table.remove(id);
            return self.refuse(key, header);
        }
        if ready {
            self.feed(id, Event::HostConnected);
        } else {
            self.start_deadline(Kind::Handshake, id);
        }
    }

    /// Feeds an event to a stream and does what it asks for, except moving a payload.
    pub(super) fn feed(&mut self, id: StreamId, event: Event<'_>) -> Todo {
        let up = self.rings[RX_QUEUE].is_some();
        let Some(stream) = self.table.get_mut(id) else { return Todo::NOTHING };
        let key = stream.key;
        let todo = stream.machine.handle(event);
        if todo.contains(Todo::ANNOUNCE) {
            stream.announce();
        }
        if todo.contains(Todo::REFUSE) {
            stream.turn_away(match event {
                Event::Packet(_) => "ERR refused by the guest\n",
                Event::Expired if up => "ERR no answer from the guest\n",
                _ => "ERR the guest is not up\n",
            });
        }
        if todo.contains(Todo::DEAFEN_HOST) {
            stream.readable = false;
            stream.endpoint.shutdown(Shutdown::Read);
        }
        if todo.contains(Todo::END_HOST) {
            stream.end_when_flushed = true;
        }
        if todo.contains(Todo::DROP_BYTES) {
            let dropped = stream.outgoing.clear();
            stream.forwarded(dropped);
        }
        if todo.contains(Todo::RESET) {
            self.resets.push(key);
        }
        if todo.contains(Todo::RELEASE) {
            self.table.release(id);
        }
        if todo.contains(Todo::START_CLOSE_TIMER) {
            self.start_deadline(Kind::Close, id);
        }
        self.settle(id);
        todo
    }

    /// Writes what waits for the host's side.
    pub(super) fn flush(&mut self, id: StreamId) {
        let Some(stream) = self.table.get_mut(id) else { return };
        while stream.writable && !stream.outgoing.is_empty() {
            match stream.endpoint.write_ring(&mut stream.outgoing) {
                StreamEnd::Moved(count, blocked) => {
                    stream.writable = !blocked;
                    stream.forwarded(count);
                }
                StreamEnd::Ended | StreamEnd::Broken => {
                    self.feed(id, Event::HostDeaf);
                    return;
                }
            }
        }
        self.settle(id);
    }

    /// After any change: ends what can be ended, queues what has work.
    pub(super) fn settle(&mut self, id: StreamId) {
        let Some(stream) = self.table.get_mut(id) else { return };
        if stream.outgoing.is_empty() {
            if stream.machine.phase() == Phase::Draining {
                stream.machine.handle(Event::Flushed);
            } else if std::mem::take(&mut stream.end_when_flushed) {
                stream.endpoint.shutdown(Shutdown::Write);
            }
        }
        if stream.machine.phase() == Phase::Closed {
            self.table.remove(id);
        } else {
            self.table.queue_turn(id);
        }
    }

    /// Drops a connection the guest no longer knows; its bytes still drain.
    fn forget(&mut self, id: StreamId) {
        let Some(stream) = self.table.get(id) else { return };
        let key = stream.key;
        let reset = Header { op: Op::Reset, ..self.header(&key, Op::Reset, 0) };
        self.feed(id, Event::Packet(&reset));
    }

    fn close_all(&mut self) {
        for mut stream in self.table.clear() {
            if stream.machine.phase() == Phase::Requested {
                stream.turn_away("ERR the guest was reset\n");
            }
            // What the guest managed to send before it went is the host's; what does not fit now is lost.
            if !stream.outgoing.is_empty() {
                stream.endpoint.write_ring(&mut stream.outgoing);
            }
        }
        self.resets.clear();
        self.deadlines.clear();
        self.redials.clear();
    }

    /// A header to the guest, without credit.
    pub(super) fn header(&self, key: &Key, op: Op, flags: u32) -> Header {
        Header {
            src_cid: key.peer_cid,
            dst_cid: self.cid,
            src_port: key.peer_port,
            dst_port: key.guest_port,
            len: 0,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    fn start_deadline(&mut self, kind: Kind, id: StreamId) {
        let Some(stream) = self.table.get(id) else { return };
        self.deadlines.start(kind, (self.clock)(), id, stream.serial);
        if self.deadlines.len() > 2 * self.table.len() + 1024 {
            let table = &self.table;
            self.deadlines.drop_settled(|kind, id, serial| waits(table, kind, id, serial));
        }
    }

    fn expire(&mut self) {
        if self.deadlines.is_empty() && self.redials.next().is_none() {
            return;
        }
        let now = (self.clock)();
        while let Some(due) = self.redials.pop_due(now) {
            match due {
                Due::Dial(header, until) => self.guest_connects(Key::of(&header), &header, Some(until)),
                Due::GiveUp(header) => self.refuse(Key::of(&header), &header),
            }
        }
        while let Some((kind, id, serial)) = self.deadlines.pop_due(now) {
            if waits(&self.table, kind, id, serial) {
                tracing::debug!(cid = self.cid, ?kind, "A connection timed out");
                self.feed(id, Event::Expired);
            }
        }
    }

    fn send_event(&mut self, memory: &Memory) -> Result<(), RingError> {
        let Some(ring) = &mut self.rings[EVENT_QUEUE] else { return Ok(()) };
        while self.transport_reset
            && let Some(head) = ring.pop(memory)?
        {
            let mut pieces = Vec::new();
            let room = ring.descriptors(memory).writable(head, &mut pieces).unwrap_or(0);
            if room >= EVENT_SIZE {
                super::rx::scatter(&pieces, &EVENT_TRANSPORT_RESET.to_le_bytes());
                self.transport_reset = false;
                ring.complete(memory, head, EVENT_SIZE)?;
            } else {
                ring.complete(memory, head, 0)?;
            }
        }
        ring.notify(memory)
    }

    /// A ring that cannot be believed is left alone until the driver resets the device.
    fn check(&mut self, index: usize, result: Result<bool, RingError>) -> bool {
        result.unwrap_or_else(|error| {
            tracing::error!(cid = self.cid, ring = index, %error, "The guest's ring is out of use until a reset");
            self.rings[index] = None;
            false
        })
    }
}

/// The stream still waits for what the timeout is about.
fn waits(table: &Table, kind: Kind, id: StreamId, serial: u64) -> bool {
    let Some(stream) = table.get(id).filter(|stream| stream.serial == serial) else { return false };
    match kind {
        Kind::Handshake => matches!(stream.machine.phase(), Phase::Dialing | Phase::Requested),
        Kind::Close => stream.machine.phase() == Phase::Established,
    }
}

impl Stream {
    /// `count` bytes reached the host's side.
    pub(super) fn forwarded(&mut self, count: usize) {
        // At most what the ring holds or one batch carries, far below 4 GiB.
        self.machine.forwarded(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn announce(&mut self) {
        match &mut self.endpoint {
            Endpoint::Pipe(pipe) => pipe.accept(),
            Endpoint::Unix(_) if self.greeting == Greeting::Line => {
                say(&mut self.endpoint, &format!("OK {}\n", self.key.peer_port));
            }
            Endpoint::Unix(_) => {}
        }
    }

    /// Firecracker only closes here; a client that checks for `OK` reads this line as the failure it is.
    fn turn_away(&mut self, line: &str) {
        if self.greeting == Greeting::Line {
            say(&mut self.endpoint, line);
        }
    }
}

/// The first words on a fresh socket, which always fit.
fn say(endpoint: &mut Endpoint, line: &str) {
    let mut words = ByteRing::default();
    words.push_bytes(line.as_bytes());
    endpoint.write_ring(&mut words);
}

impl Device for Vsock {
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_VSOCK_F_STREAM
    }

    fn ack_features(&mut self, _features: u64) {}

    fn ring_sizes(&self) -> &[u16] {
        &RING_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config: [u8; CONFIG_SIZE] = self.cid.to_le_bytes();
        for (to, from) in data.iter_mut().zip(config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn set_memory(&mut self, memory: Memory) {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            if ring.as_ref().is_some_and(|ring| !ring.is_valid(&memory)) {
                tracing::error!(cid = self.cid, ring = index, "The ring is not in the guest's new memory");
                *ring = None;
            }
        }
        self.memory = Some(memory);
    }

    fn start_ring(&mut self, index: usize, ring: Ring) {
        let valid = self.memory.as_ref().is_some_and(|memory| ring.is_valid(memory));
        if let Some(place) = self.rings.get_mut(index) {
            *place = valid.then_some(ring);
        }
        self.kick(index);
    }

    fn stop_ring(&mut self, index: usize) -> Option<Queue> {
        self.rings.get_mut(index)?.take().map(Ring::into_queue)
    }

    fn kick(&mut self, index: usize) {
        match index {
            RX_QUEUE => self.starved = false,
            TX_QUEUE => self.transmitting = true,
            _ => {}
        }
    }

    fn run(&mut self) -> bool {
        self.expire();
        let Some(memory) = self.memory.clone() else { return false };
        let mut more = false;
        if self.transmitting {
            let result = self.run_tx(&memory);
            self.transmitting = self.check(TX_QUEUE, result);
            more |= self.transmitting;
        }
        if !self.starved {
            let result = self.run_rx(&memory);
            more |= self.check(RX_QUEUE, result);
        }
        if self.transport_reset {
            let result = self.send_event(&memory).map(|()| false);
            self.check(EVENT_QUEUE, result);
        }
        more
    }

    fn reset(&mut self) {
        self.close_all();
        self.rings = [None, None, None];
        self.starved = false;
        self.transmitting = false;
        self.transport_reset = false;
    }
}

const _: () = assert!(SHUTDOWN_BOTH == 3 && HOST_CID < MIN_GUEST_CID && HEADER_SIZE == 44);
