//! Pseudo-terminals.
#![expect(unsafe_code, reason = "terminal ioctls have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use hospes_protocol::exec::WindowSize;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, unlockpt};
use nix::sys::termios::{SpecialCharacterIndices, tcgetattr};

/// `TIOCGPTPEER` of `ioctl_tty(2)`: opens the other end by its own master, whatever is mounted at `/dev/pts`.
const TIOCGPTPEER: libc::Ioctl = 0x5441;

/// A new terminal: our end and the command's.
pub(crate) fn open(size: WindowSize) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: the ioctl reads flags and returns a new descriptor, which is nobody else's.
    let slave = unsafe {
        let fd = Errno::result(libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags.bits()))?;
        OwnedFd::from_raw_fd(fd)
    };
    resize(&master, size)?;
    Ok((OwnedFd::from(master), slave))
}

/// Sets a terminal's size; its foreground group is told by `SIGWINCH`.
pub(crate) fn resize(master: &impl AsFd, size: WindowSize) -> io::Result<()> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: size.width, ws_ypixel: size.height };
    // SAFETY: the ioctl reads the structure it is given.
    Errno::result(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// The character that ends the input, as the terminal is set now.
pub(crate) fn end_of_file(master: &impl AsFd) -> u8 {
    const CONTROL_D: u8 = 4;
    match tcgetattr(master) {
        Ok(now) => now.control_chars[SpecialCharacterIndices::VEOF as usize],
        Err(_) => CONTROL_D,
    }
}

/// The terminal's foreground process group.
pub(crate) fn foreground(master: &impl AsFd) -> Option<i32> {
    let mut group = 0;
    // SAFETY: the ioctl writes one process id.
    let done = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPGRP, &raw mut group) };
    (done == 0 && group > 0).then_some(group)
}
