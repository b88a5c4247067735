//! A driver and a device in one thread, with pipes for the host's side and a clock that only tests move.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::driver::{Driver, Layout};
use super::queue::DriverQueue;
use crate::io::{Endpoint, PipeEnd, StreamEnd, WakeList, pipe};
use crate::virtio::vsock::packet::Header;
use crate::virtio::vsock::spec::{HOST_CID, Op};
use crate::virtio::vsock::{ConnectError, Dial, DialError, Greeting, Host, Key, Limits, StreamId, Vsock};
use crate::virtio::{Device, Interrupt, Memory, Ring};

/// The guest's cid.
pub const CID: u64 = 42;

struct Counter(Arc<AtomicUsize>);

impl Interrupt for Counter {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Default)]
struct Listeners {
    /// Ports that someone listens on, with the connections not accepted yet.
    ports: HashMap<u32, VecDeque<PipeEnd>>,
    wake: WakeList,
    busy: bool,
}

struct PipeHost(Rc<RefCell<Listeners>>);

impl Host for PipeHost {
    fn dial(&mut self, key: &Key) -> Result<Dial, DialError> {
        let mut listeners = self.0.borrow_mut();
        if listeners.busy {
            return Err(DialError::Busy { path: String::new() });
        }
        let (near, far) = pipe(&listeners.wake);
        match listeners.ports.get_mut(&key.peer_port) {
            Some(waiting) if key.peer_cid == HOST_CID => {
                waiting.push_back(far);
                Ok(Dial::Ready(Endpoint::Pipe(near)))
            }
            _ => Err(DialError::Unreachable { cid: key.peer_cid }),
        }
    }

    fn watch(&mut self, id: StreamId, endpoint: &mut Endpoint) -> io::Result<()> {
        if let Endpoint::Pipe(pipe) = endpoint {
            pipe.set_token(id as usize);
        }
        Ok(())
    }
}

/// A guest with its device.
pub struct Guest {
    /// The device.
    pub device: Vsock,
    /// The driver.
    pub driver: Driver,
    /// Packets that came and were not asked for yet.
    pub inbox: VecDeque<(Header, Vec<u8>)>,
    interrupts: Arc<AtomicUsize>,
    listeners: Rc<RefCell<Listeners>>,
    now: Rc<Cell<Instant>>,
}

impl Guest {
    /// A guest whose rings run and whose receive buffers are offered.
    pub fn new(layout: Layout) -> Self {
        Self::with_limits(layout, Limits::default())
    }

    /// As [`new`](Self::new), with limits.
    pub fn with_limits(layout: Layout, limits: Limits) -> Self {
        let bytes = usize::try_from(layout.memory()).expect("fits");
        // Two regions, so that buffers lie across the seam.
        let first = (bytes / 2).next_multiple_of(4096);
        let seam = GuestAddress(first as u64);
        let ranges = [(GuestAddress(0), first), (seam, bytes)];
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let listeners = Rc::new(RefCell::new(Listeners::default()));
        let now = Rc::new(Cell::new(Instant::now()));
        let clock = now.clone();
        let host = Box::new(PipeHost(listeners.clone()));
        let mut device =
            Vsock::with_clock(CID, limits, host, Box::new(move || clock.get())).expect("a guest's cid");
        device.set_memory(memory.clone());
        let interrupts = Arc::new(AtomicUsize::new(0));
        let event_idx = layout.event_idx;
        let mut driver = Driver::new(layout, memory, CID);
        for (index, queue) in driver.queues.iter().enumerate() {
            device.start_ring(index, ring(queue, event_idx, &interrupts));
        }
        driver.offer_buffers();
        Self { device, driver, inbox: VecDeque::new(), interrupts, listeners, now }
    }

    /// Someone on the host listens on `port` from now on.
    pub fn listen(&self, port: u32) {
        self.listeners.borrow_mut().ports.entry(port).or_default();
    }

    /// Whether the host's listeners have as many connections waiting as they want.
    pub fn set_busy(&self, busy: bool) {
        self.listeners.borrow_mut().busy = busy;
    }

    /// The host's end of a connection that the guest made to `port`.
    pub fn accept(&self, port: u32) -> Option<PipeEnd> {
        self.listeners.borrow_mut().ports.get_mut(&port)?.pop_front()
    }

    /// The host asks for a connection.
    pub fn connect(&mut self, port: u32) -> Result<PipeEnd, ConnectError> {
        let (near, far) = pipe(&self.listeners.borrow().wake);
        self.device.connect(Endpoint::Pipe(near), port, (HOST_CID, None), Greeting::None)?;
        Ok(far)
    }

    /// Interrupts so far.
    pub fn interrupts(&self) -> usize {
        self.interrupts.load(Ordering::Relaxed)
    }

    /// Moves the clock.
    pub fn pass(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    /// Kicks every ring, lets the device work until it rests, and takes used chains without looking at them: for
    /// guests that write anything anywhere.
    pub fn work_blindly(&mut self) {
        for index in 0..self.driver.queues.len() {
            self.device.kick(index);
        }
        self.run();
        for queue in &mut self.driver.queues {
            while queue.pop_used().is_some() {}
        }
        self.driver.forget_buffers();
    }

    /// Kicks as a driver would, lets the device work until it rests, and collects packets. Offers no buffers.
    pub fn work(&mut self) {
        for index in 0..self.driver.queues.len() {
            if self.driver.queues[index].kick_wanted() {
                self.device.kick(index);
            }
        }
        self.run();
        while let Some(packet) = self.driver.receive() {
            self.inbox.push_back(packet);
        }
    }

    fn run(&mut self) {
        let mut rounds = 0;
        loop {
            let more = self.device.run();
            let wake = self.listeners.borrow().wake.take();
            if !more && wake.is_empty() {
                break;
            }
            for token in wake {
                self.device.pipe_ready(u32::try_from(token).expect("a stream"));
            }
            rounds += 1;
            assert!(rounds < 100_000, "the device never rests");
        }
    }

    /// As [`work`](Self::work), and offers all buffers again, until nothing moves any more.
    pub fn settle(&mut self) {
        loop {
            self.work();
            let before = self.inbox.len();
            self.driver.offer_buffers();
            self.work();
            if self.inbox.len() == before {
                return;
            }
        }
    }

    /// Sends a packet; the device works until there is room for it.
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        while !self.driver.send(header, payload) {
            self.work();
        }
        self.work();
    }

    /// The next packet, which must be of this kind; news of credit that nobody waits for is passed over.
    pub fn expect(&mut self, op: Op) -> (Header, Vec<u8>) {
        self.settle();
        while op != Op::CreditUpdate
            && self.inbox.front().is_some_and(|packet| packet.0.op == Op::CreditUpdate)
        {
            self.inbox.pop_front();
        }
        let (header, payload) =
            self.inbox.pop_front().unwrap_or_else(|| panic!("{op:?} expected, nothing came"));
        assert_eq!(header.op, op, "{header:?}");
        (header, payload)
    }

    /// No packet waits.
    pub fn expect_silence(&mut self) {
        self.settle();
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }
}

/// A ring as a front end would make it.
fn ring(queue: &DriverQueue, event_idx: bool, interrupts: &Arc<AtomicUsize>) -> Ring {
    let mut ring = Queue::new(1024).expect("a power of two");
    ring.set_size(queue.size());
    ring.try_set_desc_table_address(GuestAddress(queue.descriptors())).expect("aligned");
    ring.try_set_avail_ring_address(GuestAddress(queue.available())).expect("aligned");
    ring.try_set_used_ring_address(GuestAddress(queue.used())).expect("aligned");
    ring.set_event_idx(event_idx);
    ring.set_ready(true);
    Ring::new(ring, Box::new(Counter(interrupts.clone())))
}

/// All that waits in a pipe.
pub fn read_all(pipe: &mut PipeEnd) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        match pipe.read_bytes(&mut bytes) {
            StreamEnd::Moved(0, _) => return (all, false),
            StreamEnd::Moved(count, _) => all.extend_from_slice(&bytes[..count]),
            StreamEnd::Ended | StreamEnd::Broken => return (all, true),
        }
    }
}
