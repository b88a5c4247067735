//! Freezing and thawing a list of file systems, by two threads that need not wait for each other: one may stand in a
//! freeze that takes long while the other thaws what is frozen.
//!
//! ```text
//! WAITING ─ freezing ─┬─ FROZEN ─ thawing ─┬─ THAWED
//!                     ├─ INCAPABLE         └─ STUCK (the thaw failed)
//!                     └─ FAILED: the others are thawed again
//! ```
//! Nothing here allocates, logs or opens once the engine is made.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

use hospes_protocol::freeze::FsState;
use nix::errno::Errno;

use super::edge::Edge;

const WAITING: u8 = 0;
const FROZEN: u8 = 1;
const THAWING: u8 = 2;
const THAWED: u8 = 3;
const INCAPABLE: u8 = 4;
const FAILED: u8 = 5;
const STUCK: u8 = 6;

/// File systems to be frozen, in their order.
#[derive(Debug)]
pub struct Engine<'e, E: Edge> {
    edge: &'e E,
    slots: Vec<Slot<E::Handle>>,
    /// No more is frozen, and what is frozen later is thawed at once.
    over: AtomicBool,
}

#[derive(Debug)]
struct Slot<H> {
    handle: H,
    state: AtomicU8,
    error: AtomicI32,
}

/// How one file system stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// In the protocol's words: `FROZEN` where it is, or was until it was thawed.
    pub state: FsState,
    /// The kernel's error, or zero.
    pub error: i32,
}

impl<'e, E: Edge> Engine<'e, E> {
    /// Takes what is open, in the order in which it is to be frozen.
    #[must_use]
    pub fn new(edge: &'e E, handles: Vec<E::Handle>) -> Self {
        let slot = |handle| Slot { handle, state: AtomicU8::new(WAITING), error: AtomicI32::new(0) };
        Self { edge, slots: handles.into_iter().map(slot).collect(), over: AtomicBool::new(false) }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Freezes them in order. True where all that can be frozen is, and stays so; else nothing is, nor will be.
    pub fn freeze(&self) -> bool {
        for slot in &self.slots {
            if self.over.load(Ordering::SeqCst) {
                return false;
            }
            match self.edge.freeze(&slot.handle) {
                Ok(()) => slot.state.store(FROZEN, Ordering::SeqCst),
                Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => slot.state.store(INCAPABLE, Ordering::SeqCst),
                Err(error) => {
                    slot.error.store(error as i32, Ordering::SeqCst);
                    slot.state.store(FAILED, Ordering::SeqCst);
                    self.thaw();
                    return false;
                }
            }
            // The other thread has thawed what was frozen by then: either it saw this one, or we see that it was there.
            if self.over.load(Ordering::SeqCst) {
                self.release(slot);
                return false;
            }
        }
        !self.over.load(Ordering::SeqCst)
    }

    /// Thaws what is frozen, the last one first. May be called again, and while [`freeze`](Self::freeze) runs.
    pub fn thaw(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.slots.iter().rev().for_each(|slot| self.release(slot));
    }

    fn release(&self, slot: &Slot<E::Handle>) {
        if slot.state.compare_exchange(FROZEN, THAWING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return;
        }
        match self.edge.thaw(&slot.handle) {
            Ok(()) => slot.state.store(THAWED, Ordering::SeqCst),
            Err(error) => {
                slot.error.store(error as i32, Ordering::SeqCst);
                slot.state.store(STUCK, Ordering::SeqCst);
            }
        }
    }

    /// How each stands, in the order in which they were given. Where the freeze `failed`, what was thawed for it is
    /// `UNDONE`.
    pub fn standings(&self, failed: bool) -> impl Iterator<Item = Standing> {
        self.slots.iter().map(move |slot| {
            let state = match slot.state.load(Ordering::SeqCst) {
                FROZEN | THAWING => FsState::FROZEN,
                THAWED if !failed => FsState::FROZEN,
                INCAPABLE => FsState::INCAPABLE,
                FAILED | STUCK => FsState::FAILED,
                _ => FsState::UNDONE,
            };
            Standing { state, error: slot.error.load(Ordering::SeqCst) }
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;
    use std::io;
    use std::sync::{Condvar, Mutex};

    use super::super::mounts::{self, Device, Mount};
    use super::super::plan::Candidate;
    use super::*;

    /// A machine that remembers what was done to it.
    #[derive(Debug, Default)]
    pub(crate) struct Fake {
        pub(crate) table: Vec<u8>,
        /// Kinds or mount points that answer a freeze so.
        pub(crate) refuse: Vec<(&'static str, Errno)>,
        /// A mount point whose freeze takes until [`Fake::let_go`].
        pub(crate) slow: Option<&'static str>,
        pub(crate) log: Mutex<Vec<String>>,
        pub(crate) free: (Mutex<bool>, Condvar),
    }

    impl Fake {
        pub(crate) fn note(&self, line: String) {
            self.log.lock().unwrap().push(line);
        }

        pub(crate) fn log(&self) -> Vec<String> {
            self.log.lock().unwrap().clone()
        }

        pub(crate) fn let_go(&self) {
            *self.free.0.lock().unwrap() = true;
            self.free.1.notify_all();
        }
    }

    impl Edge for Fake {
        type Handle = String;

        fn tables(&self) -> io::Result<(Vec<Mount>, HashSet<Vec<u8>>)> {
            Ok((mounts::parse(&self.table), HashSet::from([b"proc".to_vec()])))
        }

        fn beneath(&self, _: Device) -> Vec<Device> {
            Vec::new()
        }

        fn open(&self, candidate: &Candidate) -> io::Result<String> {
            let point = String::from_utf8(candidate.places[0].point.clone()).unwrap();
            if point.starts_with("/hidden") {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(point)
        }

        fn sync(&self, handle: &String) {
            self.note(format!("sync {handle}"));
        }

        fn lock_memory(&self) -> io::Result<()> {
            self.note("lock".into());
            Ok(())
        }

        fn unlock_memory(&self) {
            self.note("unlock".into());
        }

        fn freeze(&self, handle: &String) -> Result<(), Errno> {
            self.note(format!("freeze {handle}"));
            if self.slow == Some(handle) {
                let free = self.free.0.lock().unwrap();
                drop(self.free.1.wait_while(free, |free| !*free).unwrap());
            }
            match self.refuse.iter().find(|(point, _)| point == handle) {
                Some((_, error)) => Err(*error),
                None => Ok(()),
            }
        }

        fn thaw(&self, handle: &String) -> Result<(), Errno> {
            self.note(format!("thaw {handle}"));
            if handle == "/stuck" { Err(Errno::EINVAL) } else { Ok(()) }
        }

        fn trim(&self, handle: &String, minimum: u64) -> Result<u64, Errno> {
            if handle == "/" { Ok(1000 + minimum) } else { Err(Errno::EOPNOTSUPP) }
        }
    }

    fn engine<'f>(fake: &'f Fake, points: &[&str]) -> Engine<'f, Fake> {
        Engine::new(fake, points.iter().map(|point| (*point).to_owned()).collect())
    }

    fn states(engine: &Engine<'_, Fake>, failed: bool) -> Vec<FsState> {
        engine.standings(failed).map(|standing| standing.state).collect()
    }

    #[test]
    fn they_are_thawed_in_the_other_order_and_once() {
        let fake = Fake::default();
        let engine = engine(&fake, &["/a", "/b", "/"]);
        assert!(engine.freeze());
        assert_eq!(states(&engine, false), [FsState::FROZEN; 3]);
        engine.thaw();
        engine.thaw();
        assert_eq!(fake.log(), ["freeze /a", "freeze /b", "freeze /", "thaw /", "thaw /b", "thaw /a"]);
        assert_eq!(states(&engine, false), [FsState::FROZEN; 3], "they were, until then");
    }

    #[test]
    fn a_failure_undoes_what_was_done_and_leaves_the_rest() {
        let fake = Fake { refuse: vec![("/b", Errno::EBUSY)], ..Fake::default() };
        let engine = engine(&fake, &["/a", "/b", "/"]);
        assert!(!engine.freeze());
        assert_eq!(fake.log(), ["freeze /a", "freeze /b", "thaw /a"], "what others have frozen stays so");
        assert_eq!(states(&engine, true), [FsState::UNDONE, FsState::FAILED, FsState::UNDONE]);
        assert_eq!(engine.standings(true).nth(1).unwrap().error, Errno::EBUSY as i32);
    }

    #[test]
    fn a_kind_that_cannot_be_frozen_is_passed_over() {
        let fake = Fake { refuse: vec![("/boot/efi", Errno::EOPNOTSUPP)], ..Fake::default() };
        let engine = engine(&fake, &["/boot/efi", "/"]);
        assert!(engine.freeze());
        engine.thaw();
        assert_eq!(states(&engine, false), [FsState::INCAPABLE, FsState::FROZEN]);
        assert_eq!(fake.log().last().unwrap(), "thaw /");
    }

    #[test]
    fn one_that_somebody_else_has_thawed_is_told() {
        let fake = Fake::default();
        let engine = engine(&fake, &["/stuck", "/"]);
        assert!(engine.freeze());
        engine.thaw();
        assert_eq!(states(&engine, false), [FsState::FAILED, FsState::FROZEN]);
    }

    #[test]
    fn what_is_frozen_is_thawed_while_another_freeze_still_takes() {
        let fake = Fake { slow: Some("/b"), ..Fake::default() };
        let engine = engine(&fake, &["/a", "/b", "/"]);
        std::thread::scope(|scope| {
            let freezer = scope.spawn(|| engine.freeze());
            while fake.log().last().map(String::as_str) != Some("freeze /b") {
                std::thread::yield_now();
            }
            engine.thaw();
            assert_eq!(fake.log().last().unwrap(), "thaw /a");
            fake.let_go();
            assert!(!freezer.join().unwrap());
        });
        assert_eq!(fake.log(), ["freeze /a", "freeze /b", "thaw /a", "thaw /b"], "/ was never frozen");
        assert_eq!(states(&engine, true), [FsState::UNDONE; 3]);
    }
}
