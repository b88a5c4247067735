//! Bytes between a file and the guest's memory, all of them or an error, with no copy of ours between.
#![expect(unsafe_code, reason = "guest memory is named by pointer: the guest writes it while we hold it")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::IoBuf;

/// Fills the pieces from `offset` on. What they are afterwards is the rest that was not filled.
///
/// # Errors
/// The file's, or that it ends before ([`io::ErrorKind::UnexpectedEof`]).
pub fn read_exact_at(file: &File, to: &mut [IoBuf<'_>], offset: u64) -> io::Result<()> {
    all(to, offset, io::ErrorKind::UnexpectedEof, |pieces, count, offset| {
        // SAFETY: `IoBuf` is a transparent iovec; each piece lies in a mapping that outlives the call.
        unsafe { libc::preadv(file.as_raw_fd(), pieces, count, offset) }
    })
}

/// Writes the pieces from `offset` on. What they are afterwards is the rest that was not written.
///
/// # Errors
/// The file's, or that it takes no more ([`io::ErrorKind::WriteZero`]).
pub fn write_all_at(file: &File, from: &mut [IoBuf<'_>], offset: u64) -> io::Result<()> {
    all(from, offset, io::ErrorKind::WriteZero, |pieces, count, offset| {
        // SAFETY: `IoBuf` is a transparent iovec; each piece lies in a mapping that outlives the call.
        unsafe { libc::pwritev(file.as_raw_fd(), pieces, count, offset) }
    })
}

fn all(
    mut pieces: &mut [IoBuf<'_>],
    mut offset: u64,
    at_end: io::ErrorKind,
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    loop {
        let gone = pieces.iter().take_while(|piece| piece.is_empty()).count();
        pieces = &mut pieces[gone..];
        if pieces.is_empty() {
            return Ok(());
        }
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let count = libc::c_int::try_from(pieces.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        match usize::try_from(call(pieces.as_ptr().cast(), count, at)) {
            Ok(0) => return Err(at_end.into()),
            Ok(mut moved) => {
                offset += moved as u64;
                for piece in pieces.iter_mut() {
                    let (head, tail) = piece.split_at(moved);
                    moved -= head.len();
                    *piece = tail;
                }
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
