//! The threads that serve requests, and the rings they share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::fuse::Server;
use crate::fuse::abi::op;
use crate::fuse::sys;
use crate::io::IoBuf;
use crate::virtio::{Memory, Ring, RingError};

/// A ring, and those of its requests that are being served.
#[derive(Default)]
struct State {
    ring: Option<Ring>,
    memory: Option<Memory>,
    in_flight: usize,
    stopping: bool,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    settled: Condvar,
    /// Where the guest's kicks come, while the ring runs.
    kick: Mutex<Option<OwnedFd>>,
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Shared {
    server: Arc<Server>,
    slots: Vec<Slot>,
    /// All threads sleep here. Everything in it is edge-triggered: an event wakes one of them, and nothing is read.
    epoll: Epoll,
    /// One a ring, for wake-ups of our own.
    nudges: Vec<EventFd>,
    stop: EventFd,
    stopping: AtomicBool,
    /// Threads that sleep, or are about to.
    idle: AtomicUsize,
    /// Rings, a bit each, in which a thread left requests behind one that may take long while nobody was idle.
    left: AtomicU64,
}

/// The threads.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn start(server: Arc<Server>, rings: usize, threads: usize) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let mut nudges = Vec::new();
        for index in 0..rings {
            let nudge = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            epoll.add(&nudge, EpollEvent::new(edge, index as u64))?;
            nudges.push(nudge);
        }
        // Level-triggered: every thread is to see it.
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX))?;
        let shared = Arc::new(Shared {
            server,
            slots: (0..rings).map(|_| Slot::default()).collect(),
            epoll,
            nudges,
            stop,
            stopping: AtomicBool::new(false),
            idle: AtomicUsize::new(0),
            left: AtomicU64::new(0),
        });
        let mut pool = Self { shared: shared.clone(), threads: Vec::new() };
        for _ in 0..threads.max(1) {
            let shared = shared.clone();
            pool.threads.push(thread::Builder::new().name("fs".into()).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    pub(super) fn set_memory(&self, memory: &Memory) {
        for (index, slot) in self.shared.slots.iter().enumerate() {
            let mut state = slot.state();
            if state.ring.as_ref().is_some_and(|ring| !ring.is_valid(memory)) {
                tracing::error!(ring = index, "The ring is not in the guest's new memory");
                state.ring = None;
            }
            state.memory = Some(memory.clone());
        }
    }

    /// Waits for kicks there from now on, until the ring is stopped.
    pub(super) fn watch(&self, index: usize, kick: BorrowedFd<'_>) -> io::Result<()> {
        let Some(slot) = self.shared.slots.get(index) else { return Ok(()) };
        let kick = kick.try_clone_to_owned()?;
        let edge = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.shared.epoll.add(kick.as_fd(), EpollEvent::new(edge, index as u64))?;
        let old = lock(&slot.kick).replace(kick);
        if let Some(old) = old {
            let _ = self.shared.epoll.delete(old.as_fd());
        }
        Ok(())
    }

    pub(super) fn start_ring(&self, index: usize, ring: Ring) {
        let Some(slot) = self.shared.slots.get(index) else { return };
        {
            let mut state = slot.state();
            let valid = state.memory.as_ref().is_some_and(|memory| ring.is_valid(memory));
            state.ring = valid.then_some(ring);
            state.stopping = false;
        }
        self.nudge(index);
    }

    /// Takes the ring back once the requests taken from it are answered.
    pub(super) fn stop_ring(&self, index: usize) -> Option<Ring> {
        let slot = self.shared.slots.get(index)?;
        if let Some(kick) = lock(&slot.kick).take() {
            let _ = self.shared.epoll.delete(kick.as_fd());
        }
        let mut state = slot.state();
        state.stopping = true;
        while state.in_flight > 0 {
            state = slot.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.ring.take()
    }

    /// Wakes a thread to look at a ring.
    pub(super) fn nudge(&self, index: usize) {
        self.shared.nudge(index);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let _ = self.shared.stop.write(1);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn nudge(&self, index: usize) {
        if let Some(nudge) = self.nudges.get(index)
            && let Err(error) = nudge.write(1)
        {
            tracing::warn!(%error, "Failed to wake a thread");
        }
    }

    fn work(&self) {
        sys::prepare_thread();
        let mut events = [EpollEvent::empty()];
        loop {
            self.idle.fetch_add(1, Ordering::SeqCst);
            if let Some(index) = self.take_left() {
                self.idle.fetch_sub(1, Ordering::SeqCst);
                self.look(index);
                continue;
            }
            let woken = self.epoll.wait(&mut events, EpollTimeout::NONE);
            self.idle.fetch_sub(1, Ordering::SeqCst);
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            match woken {
                Ok(1..) => {}
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "A thread that serves requests cannot wait for them, and ends");
                    return;
                }
            }
            self.look(usize::try_from(events[0].data()).unwrap_or(usize::MAX));
        }
    }

    fn look(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else { return };
        if let Err(error) = self.drain(index, slot) {
            tracing::error!(%error, ring = index, "The guest's ring stops until the guest is reset");
            slot.state().ring = None;
        }
    }

    /// Says that requests wait in a ring whose thread is busy with one of them.
    ///
    /// The guest kicks no more for these, so somebody has to look. Either this sees a thread that is idle and wakes it,
    /// or that thread, which says that it is idle before it asks what was left, sees what is said here.
    fn leave(&self, index: usize) {
        self.left.fetch_or(1 << index, Ordering::SeqCst);
        if self.idle.load(Ordering::SeqCst) > 0 {
            self.nudge(index);
        }
    }

    /// One of the rings that were left, which is the caller's now.
    fn take_left(&self) -> Option<usize> {
        let left = self.left.load(Ordering::SeqCst);
        let bit = left & left.wrapping_neg();
        let mine = bit != 0 && self.left.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
        mine.then(|| bit.trailing_zeros() as usize)
    }

    /// Serves requests until the ring is empty.
    fn drain(&self, index: usize, slot: &Slot) -> Result<(), RingError> {
        let mut state = slot.state();
        // Whatever was left here is in the ring, and is found below.
        if self.left.load(Ordering::Relaxed) & 1 << index != 0 {
            self.left.fetch_and(!(1 << index), Ordering::SeqCst);
        }
        loop {
            let State { ring: Some(ring), memory: Some(memory), stopping: false, .. } = &mut *state else {
                return Ok(());
            };
            let memory = memory.clone();
            let Some(head) = ring.pop(&memory)? else {
                if ring.enable_kicks(&memory)? {
                    continue;
                }
                return Ok(());
            };
            let (mut request, mut reply) = (Vec::with_capacity(4), Vec::with_capacity(4));
            let chain = ring.descriptors(&memory).request(head, &mut request, &mut reply);
            let written = match chain {
                Err(fault) => {
                    tracing::warn!(%fault, "The guest's request is refused");
                    0
                }
                Ok(()) => {
                    let more = is_slow(&request) && ring.enable_kicks(&memory)?;
                    state.in_flight += 1;
                    drop(state);
                    if more {
                        self.leave(index);
                    }
                    let written = self.server.serve(&request, &reply);
                    state = slot.state();
                    state.in_flight -= 1;
                    if state.stopping && state.in_flight == 0 {
                        slot.settled.notify_all();
                    }
                    written
                }
            };
            // Stopping waits for this, so the ring is there unless the guest broke it.
            let Some(ring) = &mut state.ring else { return Ok(()) };
            ring.complete(&memory, head, written)?;
            ring.notify(&memory)?;
        }
    }
}

/// Requests that may wait long, for a disk or for somebody on the host who has a say in it, or move many bytes.
fn is_slow(request: &[IoBuf<'_>]) -> bool {
    let mut start = [0; 8];
    if crate::fuse::reply::copy_out(request, 0, &mut start) < start.len() {
        return false;
    }
    let [_, _, _, _, opcode @ ..] = start;
    matches!(
        u32::from_le_bytes(opcode),
        op::READ
            | op::WRITE
            | op::OPEN
            | op::CREATE
            | op::FSYNC
            | op::FSYNCDIR
            | op::SYNCFS
            | op::FALLOCATE
            | op::COPY_FILE_RANGE
            | op::READDIR
            | op::READDIRPLUS
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
