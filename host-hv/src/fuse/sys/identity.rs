//! As whom this thread acts on the host's files.
//!
//! A server that is no root acts as its own user, and nothing here does anything. Root acts as each share's owner: the
//! kernel then drops what root may do to files, for this thread alone, and says no for us.
#![expect(unsafe_code, reason = "setfsuid(2) has no safe binding")]

use std::cell::Cell;

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::fuse::owner::Ids;

const ROOT: Ids = Ids { uid: 0, gid: 0 };

thread_local! {
    static NOW: Cell<Ids> = const { Cell::new(ROOT) };
}

/// The server is root.
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Before a privileged thread's first request: root's own groups go, and so does the right to keep set-id bits, so
/// that a write takes them away as it does for everybody.
pub fn prepare_thread() {
    if !is_privileged() {
        return;
    }
    if let Err(error) = rustix::thread::set_thread_groups(&[]) {
        tracing::warn!(%error, "Failed to drop supplementary groups");
    }
    keep_set_ids(false);
}

/// Acts as this user from now on. Only for a privileged server.
pub fn act_as(ids: Ids) {
    if NOW.get() == ids {
        return;
    }
    // The group first, while the thread may still change it.
    // SAFETY: plain numbers; the call changes this thread's credentials and nothing else.
    unsafe { libc::setfsuid(0) };
    // SAFETY: as above.
    unsafe { libc::setfsgid(ids.gid) };
    if ids.uid == 0 {
        // Back to root the kernel gives all back.
        keep_set_ids(false);
    } else {
        // SAFETY: as above.
        unsafe { libc::setfsuid(ids.uid) };
    }
    NOW.set(ids);
}

/// Acts as this user of a raw share for one call that makes something; who may do it, the guest's kernel has checked.
pub fn with_ids<T>(ids: Ids, call: impl FnOnce() -> T) -> T {
    if ids == ROOT {
        keep_set_ids(true);
        let result = call();
        keep_set_ids(false);
        return result;
    }
    act_as(ids);
    let overriding = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::FOWNER;
    change_effective(|effective| effective | overriding | CapabilitySet::FSETID | CapabilitySet::MKNOD);
    let result = call();
    act_as(ROOT);
    result
}

fn keep_set_ids(keep: bool) {
    change_effective(|effective| {
        if keep { effective | CapabilitySet::FSETID } else { effective - CapabilitySet::FSETID }
    });
}

fn change_effective(change: impl FnOnce(CapabilitySet) -> CapabilitySet) {
    let result = capabilities(None).and_then(|sets| {
        let effective = change(sets.effective) & sets.permitted;
        set_capabilities(None, CapabilitySets { effective, ..sets })
    });
    if let Err(error) = result {
        tracing::warn!(%error, "Failed to change capabilities");
    }
}
