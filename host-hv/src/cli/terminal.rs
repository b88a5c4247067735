//! The keyboard of a machine's serial console: every key goes to the guest, but for what follows Ctrl-A.

use std::io::{self, IsTerminal, Stdin};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Ctrl-A, as in QEMU and screen.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A does, for the user.
pub(super) const HELP: &str = "Ctrl-A x ends the machine, Ctrl-A Ctrl-A sends Ctrl-A";

/// A terminal whose keys come one by one, until this is dropped.
pub(super) struct Raw {
    stdin: Stdin,
    before: Termios,
}

impl Raw {
    /// None where stdin is no terminal.
    pub(super) fn set() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = tcsetattr(&self.stdin, SetArg::TCSANOW, &self.before);
    }
}

/// What keys mean.
#[derive(Debug, Default)]
pub(super) struct Keys {
    escaped: bool,
}

impl Keys {
    /// What of `typed` goes to the guest, and whether the machine is to end.
    pub(super) fn read(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut keys = Vec::with_capacity(typed.len());
        for &key in typed {
            match (std::mem::take(&mut self.escaped), key) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => return (keys, true),
                // A key that means nothing behind Ctrl-A is a key.
                (_, key) => keys.push(key),
            }
        }
        (keys, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_follows_the_escape_is_not_the_guests() {
        let mut keys = Keys::default();
        assert_eq!(keys.read(b"x\x03\x01"), (b"x\x03".to_vec(), false));
        assert_eq!(keys.read(b"\x01y\x01z"), (b"\x01yz".to_vec(), false));
        assert_eq!(keys.read(b"a\x01xb"), (b"a".to_vec(), true));
    }
}
