//! Namespaces: the host's mounts are left behind, and shares come along as copies with nothing above them.
#![expect(unsafe_code, reason = "fork(2) has no safe binding")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};

/// Where the new root is put together; nobody looks for anything else there by then.
const STAGE: &str = "/proc";

/// Finds out, in a child that ends, whether [`part`] and [`detach`] would work: a failure half-way would leave the
/// process in a user namespace for nothing.
pub(super) fn probe() -> io::Result<()> {
    // SAFETY: the process has no other thread yet (`Sandbox::prepare`), so the child has whole locks and a whole heap.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let open = || rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            let result = part().and_then(|()| detach(&open()?)).map(drop);
            let code = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            // SAFETY: it ends the process and returns nothing.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, code) => Err(io::Error::from_raw_os_error(code)),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        },
    }
}

/// Makes mounts of the process' own, with the host's still in view. Who is no root becomes one over mounts alone.
pub(super) fn part() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if uid == 0 {
        unshare(CloneFlags::CLONE_NEWNS)?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    // What the host mounts later shows here, and nothing of ours there.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    Ok(())
}

/// A copy of the mounts at and beneath a folder, with nothing above it, no devices, no set-id bits and no programs.
pub(super) fn detach(folder: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = open_tree(folder, c"", flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the structure and the empty path outlive the call, which only reads them; the rest are plain numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            copy.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(copy) }
}

/// Leaves the host's mounts for a root in which there is the list of the process' own descriptors and nothing else.
pub(super) fn leave() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
    // Files without a name are given one, and attributes reached, by way of it.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let descriptors = open_tree(CWD, "/proc/self/fd", flags)?;
    let bare = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("none", STAGE, "tmpfs", bare, c"size=64k,nr_inodes=16,mode=755")?;
    let place = format!("{STAGE}/proc/self/fd");
    // The mask in force is for sockets.
    for folder in ["/proc", "/proc/self", "/proc/self/fd"] {
        let folder = format!("{STAGE}{folder}");
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    move_mount(&descriptors, c"", CWD, place.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::chdir(STAGE)?;
    // The old root lies on the new one for a moment, and is taken off it.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY | bare, c"")?;
    Ok(())
}
