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
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use virtio_queue::Queue;

use super::bus::MmioDevice;
use crate::hypervisor::Edge;
use crate::io::Bell;
use crate::virtio::mmio::{Event, Registers, USED_BUFFERS};
use crate::virtio::{Device, Interrupt, Memory, Ring};

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
    /// Puts a device there and starts its thread, which is named by `name`; `device_id` is its kind's number (virtio 1.3,
    /// section 5).
    ///
    /// # Errors
    /// There is no thread, or no descriptor.
    pub fn new(
        name: &str,
        device_id: u32,
        mut device: Box<dyn Device + Send>,
        memory: Memory,
        edge: Box<dyn Edge>,
    ) -> io::Result<Self> {
        device.set_memory(memory);
        let registers = Registers::new(device_id, device.as_ref());
        let rings = device.ring_sizes().iter().map(|_| Bell::new()).collect::<io::Result<_>>()?;
        let bells = Arc::new(Bells { rings, orders: Bell::new()? });
        let poll = Poll::new()?;
        for (index, bell) in bells.all().enumerate() {
            listen(&poll, bell, index)?;
        }
        let (sender, orders) = mpsc::channel();
        let worker = Worker {
            device,
            edge: edge.into(),
            causes: registers.interrupts(),
            watched: vec![false; bells.rings.len()],
            bells: Arc::clone(&bells),
            orders,
            poll,
        };
        let thread = thread::Builder::new().name(name.into()).spawn(move || worker.work())?;
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
    poll.registry().register(&mut SourceFd(&bell.as_fd().as_raw_fd()), Token(index), Interest::READABLE)
}

struct Worker {
    device: Box<dyn Device + Send>,
    edge: Arc<dyn Edge>,
    causes: Arc<AtomicU32>,
    /// Queues whose bell the device listens to itself.
    watched: Vec<bool>,
    bells: Arc<Bells>,
    orders: Receiver<Order>,
    poll: Poll,
}

impl Worker {
    fn work(mut self) {
        let mut events = Events::with_capacity(16);
        let mut more = false;
        loop {
            match self.poll.poll(&mut events, more.then_some(Duration::ZERO)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "A device cannot wait for its driver, and stops");
                    return;
                }
                _ => {}
            }
            for event in &events {
                let Token(index) = event.token();
                if let Some(bell) = self.bells.rings.get(index) {
                    bell.heard();
                    self.device.kick(index);
                    continue;
                }
                self.bells.orders.heard();
                if !self.obey() {
                    return;
                }
            }
            more = self.device.run();
        }
    }

    /// Does what was ordered. False: there will be no more orders.
    fn obey(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Start { features, queues }) => self.start(features, queues),
                Ok(Order::Stop { index, done }) => {
                    let _ = self.device.stop_ring(index);
                    let _ = done.send(());
                }
                Ok(Order::Reset { done }) => {
                    self.device.reset();
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {
                    self.device.reset();
                    return false;
                }
            }
        }
    }

    fn start(&mut self, features: u64, queues: Vec<(usize, Queue)>) {
        self.device.ack_features(features);
        for (index, queue) in queues {
            self.watch(index);
            let interrupt = Raise { causes: Arc::clone(&self.causes), edge: Arc::clone(&self.edge) };
            self.device.start_ring(index, Ring::new(queue, Box::new(interrupt)));
        }
    }

    /// Lets the device listen to the bell itself, if it likes, and listens otherwise.
    fn watch(&mut self, index: usize) {
        let (Some(bell), Some(before)) = (self.bells.rings.get(index), self.watched.get_mut(index)) else {
            return;
        };
        let watched = self.device.watch_kicks(index, Some(bell.as_fd()));
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
