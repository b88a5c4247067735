//! A virtio device's place in the machine: its registers on the bus, the device itself on a thread of its own.
//!
//! ```text
//!   vCPU ─► registers ─► orders ─┐
//!     └─► doorbell ──────────────┴─► thread: Device ─► causes, edge ─► the GIC
//! ```
//!
//! A vCPU waits for the device in one case: a driver that stops it may reuse the queues' memory at once (Linux does not
//! ask again whether a reset is done), so the device must have let go of it by then.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::event::Event as News;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use virtio_queue::Queue;

use super::bus::MmioDevice;
use crate::hypervisor::Edge;
use crate::io::Bell;
use crate::virtio::mmio::{Event, Registers, USED_BUFFERS};
use crate::virtio::{Device, Interrupt, Memory, Ring};

/// The bells' tokens; those below are the device's.
const BELLS: usize = 1 << 62;

/// What lives in a slot: a device, and what else wakes it. It never leaves its thread, and need not be able to.
pub trait Resident {
    /// The device.
    fn device(&mut self) -> &mut dyn Device;

    /// Something has news that was registered with the thread's poll, under a token below 2^62.
    fn news(&mut self, news: &News) {
        let _ = news;
    }

    /// When [`expire`](Self::expire) has something to do though nothing happens.
    fn deadline(&mut self) -> Option<Instant> {
        None
    }

    /// Called before the device runs.
    fn expire(&mut self) {}
}

/// Makes a resident on its thread, with the poll that will wake it.
pub type Make = Box<dyn FnOnce(&Registry) -> io::Result<Box<dyn Resident>> + Send>;

/// What makes a device that only its driver wakes.
pub fn alone<D: Device + 'static>(make: impl FnOnce() -> io::Result<D> + Send + 'static) -> Make {
    Box::new(|_| Ok(Box::new(Alone(make()?))))
}

struct Alone<D>(D);

impl<D: Device> Resident for Alone<D> {
    fn device(&mut self) -> &mut dyn Device {
        &mut self.0
    }
}

/// A device in its place.
pub struct Slot {
    registers: Mutex<Registers>,
    /// None when the thread is to end.
    orders: Option<Sender<Order>>,
    bells: Arc<Bells>,
    thread: Option<JoinHandle<()>>,
}

/// What wakes the thread.
struct Bells {
    rings: Vec<Bell>,
    orders: Bell,
}

enum Order {
    Start { features: u64, queues: Vec<(usize, Queue)> },
    Stop { index: usize, done: Sender<()> },
    Reset { done: Sender<()> },
}

impl Slot {
    /// Starts a thread, which is named by `name`, and puts a device there; `device_id` is its kind's number (virtio 1.3,
    /// section 5).
    ///
    /// # Errors
    /// There is no thread, no descriptor, or no device.
    pub fn new(
        name: &str,
        device_id: u32,
        make: Make,
        memory: Memory,
        edge: Box<dyn Edge>,
    ) -> io::Result<Self> {
        let (sender, orders) = mpsc::channel();
        let (ready, made) = mpsc::channel();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            match Worker::new(device_id, make, memory, edge, orders) {
                Ok((worker, registers)) => {
                    let _ = ready.send(Ok((registers, Arc::clone(&worker.bells))));
                    worker.work();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let (registers, bells) = made.recv().map_err(io::Error::other)??;
        Ok(Self { registers: Mutex::new(registers), orders: Some(sender), bells, thread: Some(thread) })
    }

    /// What is rung when a queue has new buffers, for each queue.
    pub fn bells(&self) -> &[Bell] {
        &self.bells.rings
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        // A thread that has ended has let go of everything, and has said why.
        if self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok()) {
            self.bells.orders.ring();
        }
    }

    /// Returns when the thread has done it.
    fn order_and_wait(&self, order: impl FnOnce(Sender<()>) -> Order) {
        let (done, wait) = mpsc::channel();
        self.order(order(done));
        let _ = wait.recv();
    }
}

impl MmioDevice for Slot {
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.lock().read(offset, size)
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let mut registers = self.lock();
        // Orders are given under the lock, so that the thread has them in the order of the writes.
        match registers.write(offset, size, value) {
            Some(Event::Notify(index)) => {
                if let Some(bell) = self.bells.rings.get(index) {
                    bell.ring();
                }
            }
            Some(Event::Start { features, queues }) => self.order(Order::Start { features, queues }),
            Some(Event::Stop(index)) => self.order_and_wait(|done| Order::Stop { index, done }),
            Some(Event::Reset) => {
                self.order_and_wait(|done| Order::Reset { done });
                // The device may have interrupted until then.
                registers.interrupts().store(0, Ordering::Release);
            }
            None => (),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.orders = None;
        self.bells.orders.ring();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Bells {
    /// The rings' in their order, then the one of orders.
    fn all(&self) -> impl Iterator<Item = &Bell> {
        self.rings.iter().chain([&self.orders])
    }
}

fn listen(poll: &Poll, bell: &Bell, index: usize) -> io::Result<()> {
    poll.registry().register(
        &mut SourceFd(&bell.as_fd().as_raw_fd()),
        Token(BELLS + index),
        Interest::READABLE,
    )
}

struct Worker {
    resident: Box<dyn Resident>,
    edge: Arc<dyn Edge>,
    causes: Arc<AtomicU32>,
    /// Queues whose bell the device listens to itself.
    watched: Vec<bool>,
    bells: Arc<Bells>,
    orders: Receiver<Order>,
    poll: Poll,
}

impl Worker {
    fn new(
        device_id: u32,
        make: Make,
        memory: Memory,
        edge: Box<dyn Edge>,
        orders: Receiver<Order>,
    ) -> io::Result<(Self, Registers)> {
        let poll = Poll::new()?;
        let mut resident = make(poll.registry())?;
        let device = resident.device();
        device.set_memory(memory);
        let registers = Registers::new(device_id, device);
        let rings = device.ring_sizes().iter().map(|_| Bell::new()).collect::<io::Result<Vec<_>>>()?;
        let watched = vec![false; rings.len()];
        let bells = Arc::new(Bells { rings, orders: Bell::new()? });
        for (index, bell) in bells.all().enumerate() {
            listen(&poll, bell, index)?;
        }
        let causes = registers.interrupts();
        Ok((Self { resident, edge: edge.into(), causes, watched, bells, orders, poll }, registers))
    }

    fn work(mut self) {
        let mut events = Events::with_capacity(64);
        let mut more = false;
        loop {
            let timeout = if more { Some(Duration::ZERO) } else { self.timeout() };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "A device cannot wait for its driver, and stops");
                    return;
                }
                _ => {}
            }
            for event in &events {
                let Some(index) = event.token().0.checked_sub(BELLS) else {
                    self.resident.news(event);
                    continue;
                };
                if let Some(bell) = self.bells.rings.get(index) {
                    bell.heard();
                    self.resident.device().kick(index);
                    continue;
                }
                self.bells.orders.heard();
                if !self.obey() {
                    return;
                }
            }
            self.resident.expire();
            more = self.resident.device().run();
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        let next = self.resident.deadline()?;
        // One more millisecond: a wait that ends early would only be repeated.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// Does what was ordered. False: there will be no more orders.
    fn obey(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Start { features, queues }) => self.start(features, queues),
                Ok(Order::Stop { index, done }) => {
                    let _ = self.resident.device().stop_ring(index);
                    let _ = done.send(());
                }
                Ok(Order::Reset { done }) => {
                    self.resident.device().reset();
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    self.resident.device().reset();
                    return false;
                }
            }
        }
    }

    fn start(&mut self, features: u64, queues: Vec<(usize, Queue)>) {
        self.resident.device().ack_features(features);
        for (index, queue) in queues {
            self.watch(index);
            let interrupt = Raise { causes: Arc::clone(&self.causes), edge: Arc::clone(&self.edge) };
            self.resident.device().start_ring(index, Ring::new(queue, Box::new(interrupt)));
        }
    }

    /// Lets the device listen to the bell itself, if it likes, and listens otherwise.
    fn watch(&mut self, index: usize) {
        let (Some(bell), Some(before)) = (self.bells.rings.get(index), self.watched.get_mut(index)) else {
            return;
        };
        let watched = self.resident.device().watch_kicks(index, Some(bell.as_fd()));
        let changed = match (std::mem::replace(before, watched), watched) {
            (false, true) => self.poll.registry().deregister(&mut SourceFd(&bell.as_fd().as_raw_fd())),
            (true, false) => listen(&self.poll, bell, index),
            _ => Ok(()),
        };
        if let Err(error) = changed {
            tracing::error!(%error, queue = index, "A device cannot be notified as it should");
        }
    }
}

/// A queue's interrupt.
struct Raise {
    causes: Arc<AtomicU32>,
    edge: Arc<dyn Edge>,
}

impl Interrupt for Raise {
    fn trigger(&self) -> io::Result<()> {
        self.causes.fetch_or(USED_BUFFERS, Ordering::AcqRel);
        self.edge.pulse();
        Ok(())
    }
}
