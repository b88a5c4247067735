//! The system calls that the sandbox leaves: the devices need these and no others.
//!
//! What is not listed fails as if this kernel did not have it, which libraries know how to do without. The list is of
//! what our code and glibc's call; a call that the server comes to make belongs here, and
//! `tests/sandbox.rs` shows it missing.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// What a sandbox is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serving files of shares.
    Folders,
    /// Passing bytes between streams.
    Streams,
}

/// `fchmodat2`, which the libc crate does not name on every kind of machine; the number is the same on all.
const FCHMODAT2: libc::c_long = 452;

/// Calls that may be made with any arguments.
const FREE: &[libc::c_long] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads and time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Descriptors, and waiting for them.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Calls of the server of folders besides.
const FILES: &[libc::c_long] = &[
    // Files, open or named beneath a descriptor.
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    // Changes on the host, to be told to the guest.
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_name_to_handle_at,
    // Acting as a share's owner.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getuid,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgroups,
];

/// Older forms that only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(target_arch = "x86_64")]
const OLD_FILES: &[libc::c_long] = &[libc::SYS_chmod, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];
#[cfg(not(target_arch = "x86_64"))]
const OLD_FILES: &[libc::c_long] = &[];

/// One argument must have one of these values.
fn values(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values
        .iter()
        .map(|&value| {
            let equal = SeccompCondition::new(argument, Length::Dword, Compare::Eq, value)?;
            SeccompRule::new(vec![equal])
        })
        .collect()
}

/// Of one argument, the bits in `mask` must be these.
fn bits(argument: u8, mask: u64, value: u64) -> Result<Vec<SeccompRule>, BackendError> {
    let masked = SeccompCondition::new(argument, Length::Dword, Compare::MaskedEq(mask), value)?;
    Ok(vec![SeccompRule::new(vec![masked])?])
}

fn number(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or_default()
}

/// The list, as the kernel takes it.
pub(super) fn program(purpose: Purpose) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        FREE.iter().chain(OLD).map(|&call| (call, Vec::new())).collect();
    if purpose == Purpose::Folders {
        rules.extend(FILES.iter().chain(OLD_FILES).map(|&call| (call, Vec::new())));
        // Overlayfs' mark of a missing file, and no other device.
        rules.insert(libc::SYS_mknodat, values(3, &[0])?);
    }
    let no_code = number(libc::PROT_EXEC);
    rules.insert(libc::SYS_mmap, bits(2, no_code, 0)?);
    rules.insert(libc::SYS_mprotect, bits(2, no_code, 0)?);
    // Threads, and no processes. The newer call hides its flags, so it is left out, and libraries use this one.
    let thread = number(libc::CLONE_THREAD);
    rules.insert(libc::SYS_clone, bits(0, thread, thread)?);
    rules.insert(libc::SYS_prctl, values(0, &[number(libc::PR_SET_NAME)])?);
    // Ending itself, as a panic may.
    rules.insert(libc::SYS_tgkill, values(0, &[u64::from(std::process::id())])?);
    // Asking for a limit of its own, and setting none.
    let own = SeccompCondition::new(0, Length::Dword, Compare::Eq, 0)?;
    let asks = SeccompCondition::new(2, Length::Qword, Compare::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![own, asks])?]);
    let commands =
        [libc::F_DUPFD_CLOEXEC, libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL].map(number);
    rules.insert(libc::SYS_fcntl, values(1, &commands)?);
    // Whether a descriptor waits; nothing that a device or a terminal would act on.
    rules.insert(libc::SYS_ioctl, values(1, &[number(libc::FIONBIO), number(libc::FIOCLEX)])?);
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let errno = u32::try_from(libc::ENOSYS).unwrap_or_default();
    SeccompFilter::new(rules, SeccompAction::Errno(errno), SeccompAction::Allow, architecture)?.try_into()
}
