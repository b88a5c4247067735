//! A piece of guest memory in the form the kernel wants it.
#![expect(unsafe_code, reason = "guest memory is named by pointer: the guest writes it while we hold it")]

use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::{io, ptr};

use vm_memory::VolatileSlice;

/// A piece of guest memory. Never a Rust slice: the guest may change the bytes at any moment.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct IoBuf<'m> {
    raw: libc::iovec,
    memory: PhantomData<VolatileSlice<'m>>,
}

impl<'m> From<VolatileSlice<'m>> for IoBuf<'m> {
    fn from(slice: VolatileSlice<'m>) -> Self {
        let raw = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
        Self { raw, memory: PhantomData }
    }
}

impl IoBuf<'_> {
    /// Bytes in the piece.
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// The piece has no bytes.
    pub fn is_empty(&self) -> bool {
        self.raw.iov_len == 0
    }

    /// The first `at` bytes, and the rest; `at` is capped at the length.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let at = at.min(self.len());
        let (mut head, mut tail) = (self, self);
        head.raw.iov_len = at;
        tail.raw.iov_len -= at;
        // SAFETY: `at` is at most the length, so the result is in the same mapping or one past its end.
        tail.raw.iov_base = unsafe { self.raw.iov_base.byte_add(at) };
        (head, tail)
    }

    /// Copies out of guest memory; returns the bytes copied.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let count = self.len().min(to.len());
        // SAFETY: the piece lies in a mapping that lives for 'm and `count` is within both. The guest may write at
        // the same time: then the bytes are any mixture, which the caller treats as hostile anyway.
        unsafe { ptr::copy_nonoverlapping(self.raw.iov_base.cast::<u8>(), to.as_mut_ptr(), count) };
        count
    }

    /// Copies into guest memory; returns the bytes copied.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let count = self.len().min(from.len());
        // SAFETY: as in `copy_to`; our own memory is never part of a guest's mapping, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.raw.iov_base.cast::<u8>(), count) };
        count
    }
}

/// What one read found.
pub(super) struct Received {
    /// Bytes received; 0 is the end of the stream.
    pub(super) bytes: usize,
    /// The stream is known to be empty now: no need to ask again before the next readiness event.
    pub(super) drained: bool,
}

/// Fills `to` from a socket in one call.
pub(super) fn receive(from: &impl AsRawFd, to: &[IoBuf<'_>]) -> io::Result<Received> {
    // SAFETY: all-zero is a valid value of this plain C structure: no name, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = to.as_ptr().cast_mut().cast();
    message.msg_iovlen = to.len() as _;
    // SAFETY: `IoBuf` is a transparent iovec; each piece lies in a mapping that outlives the call.
    let count = unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // A stream gives all it has, except that it stops at file descriptors, which we do not take and which
    // truncate the control data.
    let asked: usize = to.iter().map(IoBuf::len).sum();
    let drained = bytes < asked && message.msg_flags & libc::MSG_CTRUNC == 0;
    Ok(Received { bytes, drained })
}

/// Writes `from` to a socket in one call; returns the bytes taken.
pub(super) fn send(to: &impl AsRawFd, from: &[IoBuf<'_>]) -> io::Result<usize> {
    let count = libc::c_int::try_from(from.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `IoBuf` is a transparent iovec; each piece lies in a mapping that outlives the call.
    let count = unsafe { libc::writev(to.as_raw_fd(), from.as_ptr().cast(), count) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Looks at the bytes that wait in a socket without taking them.
pub fn peek(from: &impl AsRawFd, to: &mut [u8]) -> io::Result<usize> {
    receive_plain(from, to, libc::MSG_PEEK)
}

/// Takes bytes from a socket.
pub fn discard(from: &impl AsRawFd, to: &mut [u8]) -> io::Result<usize> {
    receive_plain(from, to, 0)
}

fn receive_plain(from: &impl AsRawFd, to: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and length are those of a slice that outlives the call.
    let count = unsafe { libc::recv(from.as_raw_fd(), to.as_mut_ptr().cast(), to.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
