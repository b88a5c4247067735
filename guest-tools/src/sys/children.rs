//! Who has ended: our children are waited for in one place, so that a process id stays its owner's until then.
#![expect(unsafe_code, reason = "wait4(2), for its resource usage")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use hospes_protocol::exec::{ExitKind, ExitStatus};
use nix::errno::Errno;
use tokio::sync::Notify;

/// A child's end, as wait4(2) tells it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// How.
    pub(crate) status: ExitStatus,
    /// CPU time in user mode and in the kernel, microseconds.
    pub(crate) cpu_us: [u64; 2],
    /// Largest resident set, KiB.
    pub(crate) max_rss_kib: u64,
}

/// A child and whether it has ended.
#[derive(Debug)]
pub(crate) struct Child {
    pid: i32,
    ended: Cell<Option<Ended>>,
    news: Notify,
}

impl Child {
    /// Its process id: while it has not ended, nobody else's.
    pub(crate) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Its end, once it has come.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended.get()
    }

    /// Waits for its end. One waiter at a time.
    pub(crate) async fn wait(&self) -> Ended {
        loop {
            if let Some(ended) = self.ended.get() {
                return ended;
            }
            self.news.notified().await;
        }
    }
}

/// The children that somebody waits for. Adopted ones are waited for too, and forgotten.
#[derive(Debug, Default)]
pub(crate) struct Children(RefCell<HashMap<i32, Rc<Child>>>);

impl Children {
    /// A child just started.
    pub(crate) fn add(&self, pid: i32) -> Rc<Child> {
        let child = Rc::new(Child { pid, ended: Cell::new(None), news: Notify::new() });
        self.0.borrow_mut().insert(pid, Rc::clone(&child));
        child
    }

    /// Waits for every child that has ended, and tells who waits for it.
    pub(crate) fn reap(&self) {
        while let Some((pid, ended)) = next_ended() {
            if let Some(child) = self.0.borrow_mut().remove(&pid) {
                child.ended.set(Some(ended));
                child.news.notify_one();
            }
        }
    }
}

fn next_ended() -> Option<(i32, Ended)> {
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    let pid = loop {
        // SAFETY: wait4 writes the status and the usage it is given room for.
        let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
        if pid >= 0 || Errno::last() != Errno::EINTR {
            break pid;
        }
    };
    if pid <= 0 {
        return None;
    }
    // SAFETY: an rusage is integers, for which zero bytes are values too.
    let usage = unsafe { usage.assume_init() };
    let status = if libc::WIFSIGNALED(status) {
        ExitStatus { kind: ExitKind::SIGNAL, value: byte(libc::WTERMSIG(status)) }
    } else {
        ExitStatus { kind: ExitKind::CODE, value: byte(libc::WEXITSTATUS(status)) }
    };
    let cpu_us = [usage.ru_utime, usage.ru_stime].map(|time| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
    });
    Some((pid, Ended { status, cpu_us, max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0) }))
}

fn byte(value: i32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}
