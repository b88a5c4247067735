//! From the first freeze to the last thaw the helper asks for no memory: whoever waits for some may wait for a disk that
//! stands still.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(unsafe_code, reason = "an allocator that counts is one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use guest_tools::freeze::edge::Edge;
use guest_tools::freeze::helper;
use guest_tools::freeze::mounts::{self, Device, Mount};
use guest_tools::freeze::plan::Candidate;
use guest_tools::freeze::wire::{self, Kind, Op};
use nix::errno::Errno;

thread_local! {
    /// Whether this thread may not allocate now.
    static STILL: Cell<bool> = const { Cell::new(false) };
}
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static THAWED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count() {
    if STILL.get() {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A machine that marks the time in which both of the helper's threads must be still.
struct Machine;

impl Edge for Machine {
    type Handle = u32;

    fn tables(&self) -> io::Result<(Vec<Mount>, HashSet<Vec<u8>>)> {
        let table = b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv rw - xfs b rw\n";
        Ok((mounts::parse(table), HashSet::new()))
    }

    fn beneath(&self, _: Device) -> Vec<Device> {
        Vec::new()
    }

    fn open(&self, candidate: &Candidate) -> io::Result<u32> {
        Ok(candidate.device.minor)
    }

    fn sync(&self, _: &u32) {}

    fn lock_memory(&self) -> io::Result<()> {
        STILL.set(true);
        Ok(())
    }

    fn unlock_memory(&self) {
        STILL.set(false);
    }

    fn freeze(&self, _: &u32) -> Result<(), Errno> {
        STILL.set(true);
        Ok(())
    }

    fn thaw(&self, _: &u32) -> Result<(), Errno> {
        THAWED.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn trim(&self, _: &u32, _: u64) -> Result<u64, Errno> {
        Ok(0)
    }
}

struct Caller(UnixStream);

impl Caller {
    fn say(&mut self, op: Op) {
        self.0.write_all(&op.encode()).unwrap();
    }

    fn hear(&mut self) -> Kind {
        let mut head = [0; wire::HEAD];
        self.0.read_exact(&mut head).unwrap();
        let (kind, length) = wire::head(head).unwrap();
        self.0.read_exact(&mut vec![0; length]).unwrap();
        kind
    }
}

#[test]
fn nothing_is_allocated_while_all_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let path = helper::socket(folder.path());
    let listener = UnixListener::bind(&path).unwrap();
    let run = folder.path().to_owned();
    let helper = thread::spawn(move || helper::serve(&listener, &Machine, &run, true).unwrap());
    let caller = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Caller(stream)
    };
    let mut first = caller();
    first.say(Op::Freeze { timeout_ms: 600_000, serial: 7 });
    assert_eq!((first.hear(), first.hear()), (Kind::Plan, Kind::Frozen));
    let mut second = caller();
    second.say(Op::Status);
    assert_eq!((second.hear(), second.hear()), (Kind::Plan, Kind::Frozen));
    let mut third = caller();
    third.say(Op::Trim { minimum: 0 });
    assert_eq!(third.hear(), Kind::Refused);
    drop(first);
    second.say(Op::Thaw);
    assert_eq!(second.hear(), Kind::Thawed);
    helper.join().unwrap();
    assert_eq!(THAWED.load(Ordering::SeqCst), 2);
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0);
}
