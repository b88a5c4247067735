//! The worker's own signals: it has no handlers, so that nothing runs between a child's birth and its program.
#![expect(unsafe_code, reason = "prctl and close_range have no safe wrapper here")]

use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::async_fd::register;

/// The signals that we read.
const READ: [Signal; 4] = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
/// Bytes of one `struct signalfd_siginfo`, whose first field is the signal's number (`signalfd(2)`).
const SIGINFO: usize = 128;

/// What the kernel told us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    /// Children have ended, ours or adopted.
    pub(crate) children: bool,
    /// We are to end.
    pub(crate) terminate: bool,
}

/// The signals we are told of, by a descriptor.
#[derive(Debug)]
pub(crate) struct Signals(AsyncFd<SignalFd>);

impl Signals {
    /// Blocks the signals that we read, and `SIGPIPE`, which a write's error already says. Blocked rather than
    /// ignored: a program that we start resets its mask at once, and would inherit what is ignored.
    pub(crate) fn new() -> io::Result<Self> {
        let read = SigSet::from_iter(READ);
        let mut blocked = read;
        blocked.add(Signal::SIGPIPE);
        blocked.thread_block()?;
        restore_defaults()?;
        let fd = SignalFd::with_flags(&read, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self(register(fd, Interest::READABLE)?))
    }

    /// Waits for the next.
    pub(crate) async fn next(&self) -> io::Result<Told> {
        loop {
            let mut guard = self.0.readable().await?;
            // Every signal that we read at once: then the descriptor is drained, and need not be asked again.
            let mut told = [0; SIGINFO * (READ.len() + 1)];
            let n = match unistd::read(self.0.get_ref(), &mut told) {
                Ok(n) => n,
                Err(Errno::EAGAIN) => 0,
                Err(error) => return Err(error.into()),
            };
            guard.clear_ready();
            let mut news = Told::default();
            for info in told[..n].chunks_exact(SIGINFO) {
                let number = info.first_chunk().map_or(0, |number| u32::from_ne_bytes(*number));
                let is_child = number == Signal::SIGCHLD as u32;
                news.children |= is_child;
                news.terminate |= !is_child;
            }
            if n > 0 {
                return Ok(news);
            }
        }
    }
}

/// What is ignored here would be ignored by every command: `SIGPIPE`, which the standard library ignores before main, and
/// whatever our own starter ignored (a shell's background job ignores `SIGINT`, nohup `SIGHUP`).
fn restore_defaults() -> io::Result<()> {
    for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
        // The standard library's own handlers, which report a stack's overflow, have to stay.
        if !matches!(signal, Signal::SIGSEGV | Signal::SIGBUS) {
            // SAFETY: no handler is installed, only the default restored.
            unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl)? };
        }
    }
    Ok(())
}

/// Descendants whose parents end become our children, so that none escapes to init.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: prctl with this option reads one integer.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// Marks what we inherited close-on-exec, so that no command gets it. Kernels before 5.11 do not know how; there the
/// service manager's own care has to do.
pub(crate) fn keep_descriptors_to_ourselves() {
    // SAFETY: close_range with this flag sets a flag on descriptors and closes none.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}
