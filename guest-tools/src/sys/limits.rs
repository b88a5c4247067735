//! The worker's own limits, which are not its commands'.
#![expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that a worker may use: four or five for each command.
const DESCRIPTORS: u64 = 65_536;

/// Lets us open as many descriptors as we may, and gives back the limits as they were, for commands: programs that use
/// select(2) break where the soft limit is larger than they were written for.
pub(crate) fn raise_descriptors() -> libc::rlimit {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    if soft < DESCRIPTORS.min(hard) {
        // Where it is refused, commands beyond the limit are refused.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(hard), hard);
    }
    libc::rlimit { rlim_cur: soft, rlim_max: hard }
}

/// Gives freed memory back to the system, which the allocator otherwise keeps for next time.
pub(crate) fn give_memory_back() {
    // SAFETY: malloc_trim may be called at any time; it changes no allocation.
    unsafe { libc::malloc_trim(0) };
}
