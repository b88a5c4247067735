//! Making a vCPU's thread leave the guest.
//!
//! The thread has a signal blocked, and KVM unblocks it for as long as the guest runs (`KVM_SET_SIGNAL_MASK`): one that
//! comes before is pending then and ends that run at once, so no kick is lost between two runs, and none needs a handler.
#![expect(unsafe_code, reason = "signals and an ioctl that no library has")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use kvm_ioctls::VcpuFd;

use super::super::Kick;

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`, whose fixed part is four bytes.
const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b;
/// The kernel's `sigset_t` has eight bytes, which the C library's has not.
const KERNEL_SIGSET_LEN: u32 = 8;

/// `struct kvm_signal_mask` with its tail.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; KERNEL_SIGSET_LEN as usize],
}

/// Kicks the thread that made it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kicker {
    process: libc::pid_t,
    thread: libc::pid_t,
}

impl Kicker {
    /// Prepares this thread and the vCPU that it will run.
    pub(super) fn of_this_thread(vcpu: &VcpuFd) -> io::Result<Self> {
        let signals = only(signal());
        // SAFETY: the set is initialised, and the old one is not asked for.
        let error =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        // What the thread has blocked, less the one signal: nothing.
        let mask = SignalMask { len: KERNEL_SIGSET_LEN, sigset: [0; KERNEL_SIGSET_LEN as usize] };
        // SAFETY: the descriptor is a vCPU's, and the mask has the length that it says.
        if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: neither call has a condition.
        Ok(unsafe { Self { process: libc::getpid(), thread: libc::gettid() } })
    }

    /// Takes the signal that ended a run, so that the next one is not ended by it too.
    pub(super) fn heard(self) {
        let signals = only(signal());
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set is initialised, and nothing is asked about the signal.
        unsafe { libc::sigtimedwait(&raw const signals, std::ptr::null_mut(), &raw const at_once) };
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        // SAFETY: a signal to a thread of this process, which has it blocked; where the thread has ended, an error.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, signal()) };
    }
}

/// Nobody else's: the C library keeps the first two real-time signals for itself, and `SIGRTMIN` counts from behind them.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn only(signal: libc::c_int) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set, and `sigaddset` takes an initialised one and a valid signal.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        set.assume_init()
    }
}
