//! Bytes between a file and the guest's memory, with no copy of ours between them.
#![expect(unsafe_code, reason = "guest memory is named by pointer: the guest writes it while we hold it")]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use crate::io::IoBuf;

/// Reads at `offset` into the pieces; returns the bytes read, fewer than asked only at the file's end.
pub fn read(file: impl AsFd, to: &[IoBuf<'_>], offset: u64) -> Result<usize, Errno> {
    let (count, offset) = arguments(to, offset)?;
    // SAFETY: `IoBuf` is a transparent iovec; each piece lies in a mapping that outlives the call.
    result(unsafe { libc::preadv64(file.as_fd().as_raw_fd(), to.as_ptr().cast(), count, offset) })
}

/// Writes the pieces at `offset`; returns the bytes taken.
pub fn write(file: impl AsFd, from: &[IoBuf<'_>], offset: u64) -> Result<usize, Errno> {
    let (count, offset) = arguments(from, offset)?;
    // SAFETY: `IoBuf` is a transparent iovec; each piece lies in a mapping that outlives the call.
    result(unsafe { libc::pwritev64(file.as_fd().as_raw_fd(), from.as_ptr().cast(), count, offset) })
}

fn arguments(pieces: &[IoBuf<'_>], offset: u64) -> Result<(libc::c_int, i64), Errno> {
    let count = libc::c_int::try_from(pieces.len()).map_err(|_| Errno::INVAL)?;
    Ok((count, i64::try_from(offset).map_err(|_| Errno::INVAL)?))
}

fn result(count: isize) -> Result<usize, Errno> {
    usize::try_from(count).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}
