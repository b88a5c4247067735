//! Ending what does not end by itself: a command's whole session, and what descends from it.
//!
//! While the command itself has not been waited for, its process id names its group and nobody else's. The rest is found
//! in `/proc`: members of its session, whatever their group, and its descendants, whatever their session. What has
//! left on purpose (a daemon that forked twice into a session of its own) is no part of it any more and runs on.
//! Each is signalled by a descriptor of the process that was checked to be the one found, never by a bare number.
#![expect(unsafe_code, reason = "process descriptors have no safe wrapper")]

use std::collections::HashSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use hospes_protocol::limits::HANGUP_GRACE_MS;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::time;

use crate::process::census::{Member, Snapshot};
use crate::process::stat::Stat;
use crate::session::Worker;
use crate::sys::children::Child;

/// Between a hang-up or an end and the kill.
pub(crate) const GRACE: Duration = Duration::from_millis(HANGUP_GRACE_MS);
/// Between two looks at whether the killed are gone.
const LOOK: Duration = Duration::from_millis(50);
/// Looks, after which a process that cannot die (it waits for a device) is left to the kernel.
const LOOKS: u32 = 40;

/// Signals a command's process group. False where it is gone.
pub(crate) fn signal_group(child: &Child, number: u8) -> bool {
    // Once it has been waited for, its number may be anybody's.
    child.ended().is_none() && signal_number(child.pid(), number)
}

/// Signals a process group by its number, which the caller knows to be the right one's.
pub(crate) fn signal_number(group: i32, number: u8) -> bool {
    // SAFETY: killpg takes two integers. nix's wrapper knows no real-time signals.
    unsafe { libc::killpg(group, i32::from(number)) == 0 }
}

/// Hangs a command up: `SIGHUP`, and `SIGCONT` so that a stopped one hears it; what is left of its session 10 seconds
/// later is killed.
pub(crate) async fn hang_up(worker: &Worker, child: &Child) {
    end(worker, child, Signal::SIGHUP).await;
}

/// Ends what a command that was out of time has left behind.
pub(crate) async fn end_rest(worker: Rc<Worker>, child: Rc<Child>) {
    let _busy = worker.busy();
    end(&worker, &child, Signal::SIGTERM).await;
}

async fn end(worker: &Worker, child: &Child, first: Signal) {
    let deadline = time::Instant::now() + GRACE;
    let group = Pid::from_raw(child.pid());
    if child.ended().is_none() {
        let _ = killpg(group, first);
        let _ = killpg(group, Signal::SIGCONT);
    }
    let mut others = Others::of(child.pid());
    others.look(worker.census.take().await.as_ref());
    others.signal(child, &[first, Signal::SIGCONT]);
    if time::timeout_at(deadline, child.wait()).await.is_ok() {
        others.look(worker.census.take().await.as_ref());
        if others.found.is_empty() {
            return;
        }
        time::sleep_until(deadline).await;
    }
    for _ in 0..LOOKS {
        others.look(worker.census.take().await.as_ref());
        if others.found.is_empty() && child.ended().is_some() {
            return;
        }
        signal_group(child, Signal::SIGKILL as u8);
        others.signal(child, &[Signal::SIGKILL]);
        time::sleep(LOOK).await;
    }
    tracing::warn!("Processes of command {} do not die: {} are left", child.pid(), others.found.len());
}

/// Signals everything that belongs to a command, once. How many there were.
pub(crate) async fn signal_all(worker: &Worker, child: &Child, number: u8) -> u32 {
    let mut others = Others::of(child.pid());
    others.look(worker.census.take().await.as_ref());
    let mut count = 0;
    for member in &others.found {
        count += u32::from(signal_member(member, number));
    }
    count
}

/// What belongs to a command, as of the last look.
struct Others {
    leader: i32,
    found: HashSet<Member>,
}

impl Others {
    fn of(leader: i32) -> Self {
        Self { leader, found: HashSet::new() }
    }

    /// Looks again. What was found before and is still there stays, whoever its parent is by now.
    fn look(&mut self, now: &Snapshot) {
        self.found.retain(|member| now.has(member));
        self.found.extend(now.belonging_to(self.leader, &self.found));
    }

    /// Signals those who are not in the command's own group, or all where that can no longer be named.
    fn signal(&self, child: &Child, signals: &[Signal]) {
        for member in &self.found {
            if child.ended().is_some() || member.group != self.leader {
                for signal in signals {
                    signal_member(member, *signal as u8);
                }
            }
        }
    }
}

/// Signals a process if it is still the one that was found.
fn signal_member(member: &Member, number: u8) -> bool {
    let Ok(process) = open_process(member.pid) else { return false };
    let same = Stat::read(member.pid).is_some_and(|now| now.start == member.start && now.state != b'Z');
    same && signal_process(&process, number).is_ok()
}

/// A descriptor of a process: it stays that process's own, whatever becomes of the number.
pub(crate) fn open_process(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor, close-on-exec.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: it has just been made, and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals the process behind a descriptor.
pub(crate) fn signal_process(process: &OwnedFd, number: u8) -> nix::Result<()> {
    // SAFETY: a null siginfo makes the kernel fill in an ordinary one; the rest are integers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::c_int::from(number),
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(done).map(drop)
}
