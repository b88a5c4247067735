//! Whether the process that started us had a signal ignored: nohup, and shells' background jobs.
#![expect(unsafe_code, reason = "sigaction(2) has no safe form that only asks")]

use nix::libc;

/// Whether `signal` is ignored.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: with a null `act` sigaction only writes the present action to `oldact`, which has room for one; it is
    // read only where the call says that it was written.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
