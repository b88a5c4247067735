//! The file mode mask, which belongs to the whole process, taken off for one thread.
#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "unshare(2)"))]

/// Clears the calling thread's mask, and only this thread's: true where that worked. Elsewhere modes are set after
/// files are made, at a system call each.
#[cfg(target_os = "linux")]
pub(super) fn clear() -> bool {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: only `CLONE_FS` is given up, which is this thread's root, working directory and mask; descriptors stay
    // shared, and the threads of a copy use neither a working directory of their own nor change it.
    let alone = unsafe { unshare_unsafe(UnshareFlags::FS) }.is_ok();
    if alone {
        rustix::process::umask(rustix::fs::Mode::empty());
    }
    alone
}

#[cfg(not(target_os = "linux"))]
pub(super) const fn clear() -> bool {
    false
}
