//! Our own terminal: its size, and raw mode that is always taken back.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use hospes_protocol::exec::WindowSize;
use nix::libc;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Raw mode on a terminal, until dropped: at the end, at an error, at a panic.
#[derive(Debug)]
pub struct RawMode<'fd> {
    fd: BorrowedFd<'fd>,
    before: Termios,
}

impl<'fd> RawMode<'fd> {
    /// Sets it: every key is a byte, and the guest's terminal echoes and makes signals of them.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set(fd: BorrowedFd<'fd>) -> io::Result<Self> {
        let before = tcgetattr(fd)?;
        let mode = Self { fd, before };
        mode.again()?;
        Ok(mode)
    }

    /// Sets it once more, after the shell took the terminal while we were stopped.
    ///
    /// # Errors
    /// The operating system's.
    pub fn again(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        cfmakeraw(&mut raw);
        Ok(tcsetattr(self.fd, SetArg::TCSADRAIN, &raw)?)
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.fd, SetArg::TCSADRAIN, &self.before);
    }
}

/// The terminal's size, where `fd` is one.
#[must_use]
pub fn size(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    ioctl::winsize(fd.as_raw_fd(), &mut size).then_some(WindowSize {
        cols: size.ws_col,
        rows: size.ws_row,
        width: size.ws_xpixel,
        height: size.ws_ypixel,
    })
}

/// The size of whichever of our three descriptors is a terminal; what a terminal without a size gets otherwise.
#[must_use]
pub fn own_size() -> WindowSize {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].into_iter().find_map(size).unwrap_or(WindowSize {
        cols: 80,
        rows: 24,
        ..WindowSize::default()
    })
}

mod ioctl {
    #![expect(unsafe_code, reason = "TIOCGWINSZ has no safe form in nix")]

    use nix::libc;

    pub(super) fn winsize(fd: i32, size: &mut libc::winsize) -> bool {
        // SAFETY: TIOCGWINSZ writes one winsize, to which `size` is a live exclusive reference.
        unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, std::ptr::from_mut(size)) == 0 }
    }
}
