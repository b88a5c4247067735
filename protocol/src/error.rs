//! Errors that cross the wire: what kind, what happened, what to do next.

use std::string::ToString;

use serde::{Deserialize, Serialize};

use crate::limits::ERROR_TEXT;
use crate::open_enum;

open_enum! {
    /// What went wrong, for programs; the message is for people.
    pub struct ErrorKind(u16) {
        /// The sender has no better word.
        OTHER = 0,
        /// No protocol version in common.
        VERSION = 1,
        /// A key is not the one expected, or nobody trusts it.
        UNTRUSTED = 2,
        /// A signature, MAC or ticket does not hold.
        UNPROVED = 3,
        /// The ticket's session is not known here (the daemon restarted): do the handshake.
        STALE_TICKET = 4,
        /// The receiver's policy forbids it.
        FORBIDDEN = 5,
        /// A limit is reached: connections, sessions, bytes kept.
        LIMIT = 6,
        /// The peer broke the protocol.
        PROTOCOL = 7,
        /// The receiver does not know this request.
        UNSUPPORTED = 8,
        /// Busy for now; asking again later is right.
        BUSY = 9,

        /// No such user in the guest.
        NO_USER = 20,
        /// The guest has several human users and the request names none.
        WHICH_USER = 21,
        /// The user's session could not be started.
        SESSION = 22,
        /// No such file, directory, process, command or name.
        NOT_FOUND = 23,
        /// It exists already.
        EXISTS = 24,
        /// The guest's kernel refused: permission.
        PERMISSION = 25,
        /// A command was found and cannot be executed.
        NOT_EXECUTABLE = 26,
        /// Not a directory, or a directory, where the other was needed.
        FILE_KIND = 27,
        /// A path that would leave its target.
        ESCAPES = 28,
        /// No room on the file system.
        NO_SPACE = 29,
        /// The read-only file system, or a file that may not change.
        READ_ONLY = 30,
        /// Another failure of the guest's operating system; the message has its words.
        OS = 31,
        /// The far end of a forward refused or cannot be reached.
        UNREACHABLE = 32,
        /// It took longer than the time given.
        TIMED_OUT = 33,
        /// Somebody asked it to stop.
        CANCELLED = 34,
        /// Something in the guest asked that this wait. Forcing is possible.
        INHIBITED = 35,
        /// A script of the guest's owner said no. Forcing is possible.
        SCRIPT = 36,
    }
}

/// An error as it crosses the wire. `Display` gives the message alone; the hint is shown apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// What kind.
    pub kind: ErrorKind,
    /// What happened to what: a sentence with a capital and no full stop.
    pub message: String,
    /// What to do next, or empty.
    pub hint: String,
}

impl WireError {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl std::fmt::Display) -> Self {
        Self { kind, message: cut(message.to_string()), hint: String::new() }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl std::fmt::Display) -> Self {
        self.hint = cut(hint.to_string());
        self
    }

    /// An error of the peer's making: it broke the protocol.
    pub fn protocol(message: impl std::fmt::Display) -> Self {
        Self::new(ErrorKind::PROTOCOL, message)
    }
}

/// The answer to a frame whose id the receiver does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unknown {
    /// The id that was not known.
    pub id: u16,
}

fn cut(mut text: String) -> String {
    if text.len() > ERROR_TEXT {
        let end = (0..=ERROR_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
