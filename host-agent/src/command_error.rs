//! What a command that failed tells: what happened to what, what to do next, and an exit code.
//!
//! | code | meaning |
//! |---|---|
//! | 0 to 255 | a guest command's own, where one ran (128 and n where signal n ended it) |
//! | 124 | the guest command was ended by `--timeout` |
//! | 125 | Hospes failed, on this machine or on the way; with wrong usage, too |
//! | 126 | the guest command was found and cannot be executed |
//! | 127 | the guest command was not found |

use std::error::Error;
use std::fmt::Display;
use std::io;

use hospes_protocol::error::{ErrorKind, WireError};
use serde::Serialize;

use crate::client::ClientError;
use crate::connection::{ConnectionError, ExpectError};
use crate::dirs::DirsError;
use crate::endpoint::{DialError, EndpointError};
use crate::exec::RunError;
use crate::identity::IdentityError;
use crate::pins::PinError;
use crate::printable;
use crate::registry::RegistryError;
use crate::vm::VmNameError;

/// Our own failure.
pub const OURS: u8 = 125;
/// A guest command that cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// A guest command that is not there.
pub const NOT_FOUND: u8 = 127;
/// A guest command that took longer than it was given.
pub const TIMED_OUT: u8 = 124;

/// A command's failure. As JSON: `{"error": {"kind": …, "message": …, "hint": …, "code": …}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommandError {
    /// What kind, one word for programs: `usage`, `unknown_vm`, `unreachable`, `untrusted`, `refused`, `lost`,
    /// `protocol`, `timed_out`, `local`; or the guest's own kind in lower case, as `not_found`.
    pub kind: String,
    /// What happened to what.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The exit code.
    pub code: u8,
}

impl CommandError {
    /// A failure of ours.
    pub fn new(kind: &str, message: impl Display) -> Self {
        Self { kind: kind.to_owned(), message: message.to_string(), hint: None, code: OURS }
    }

    /// A failure on this machine.
    pub fn local(message: impl Display) -> Self {
        Self::new("local", message)
    }

    /// A wrong command line.
    pub fn usage(message: impl Display) -> Self {
        Self::new("usage", message)
    }

    /// An operation of the operating system that failed on this machine.
    pub fn io(act: impl Display, error: &io::Error) -> Self {
        Self::local(format_args!("{act}: {error}"))
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    fn of(kind: &str, error: &dyn Error, hint: Option<String>) -> Self {
        Self { kind: kind.to_owned(), message: chain(error), hint, code: OURS }
    }

    /// A refusal of the guest, in its own words made safe. For an exec, a program that is not there or cannot be
    /// executed has its own code.
    #[must_use]
    pub fn from_guest(error: &WireError) -> Self {
        let code = match error.kind {
            ErrorKind::NOT_FOUND => NOT_FOUND,
            ErrorKind::NOT_EXECUTABLE => NOT_EXECUTABLE,
            ErrorKind::TIMED_OUT => TIMED_OUT,
            _ => OURS,
        };
        Self { code, ..Self::refused(error) }
    }

    /// A refusal of the guest to something that is no command: always our code.
    #[must_use]
    pub fn refused(error: &WireError) -> Self {
        let kind = error.kind.name().unwrap_or("other").to_ascii_lowercase();
        let hint = (!error.hint.is_empty()).then(|| printable::line(&error.hint).into_owned());
        Self { kind, message: printable::line(&error.message).into_owned(), hint, code: OURS }
    }
}

/// The error and what lies under it, each said once.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}

impl From<DialError> for CommandError {
    fn from(error: DialError) -> Self {
        Self::of("unreachable", &error, error.hint())
    }
}

impl From<ConnectionError> for CommandError {
    fn from(error: ConnectionError) -> Self {
        let kind = match error {
            ConnectionError::TimedOut => "timed_out",
            ConnectionError::Frame(_) => "protocol",
            ConnectionError::Read(_) | ConnectionError::Write(_) | ConnectionError::Closed { .. } => "lost",
        };
        Self::of(kind, &error, None)
    }
}

impl From<ExpectError> for CommandError {
    fn from(error: ExpectError) -> Self {
        match error {
            ExpectError::Connection(error) => error.into(),
            ExpectError::Failed(error) => Self::refused(&error),
            ExpectError::Other { .. } | ExpectError::Codec(_) => Self::of("protocol", &error, None),
        }
    }
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        let hint = error.hint();
        match error {
            ClientError::Dial(error) => error.into(),
            ClientError::Connection(error) => Self { hint, ..error.into() },
            ClientError::Pin(error) => error.into(),
            ClientError::Identity(error) => error.into(),
            ClientError::Refused(error) => Self::refused(&error),
            ClientError::Protocol(_) | ClientError::Handshake(_) => Self::of("protocol", &error, hint),
            ClientError::Impostor => Self::of("untrusted", &error, hint),
        }
    }
}

impl From<PinError> for CommandError {
    fn from(error: PinError) -> Self {
        let kind = match error {
            PinError::OtherKey { .. } | PinError::OtherMachine { .. } => "untrusted",
            PinError::Dirs(_) | PinError::Malformed { .. } | PinError::Io { .. } => "local",
        };
        Self::of(kind, &error, error.hint())
    }
}

impl From<IdentityError> for CommandError {
    fn from(error: IdentityError) -> Self {
        Self::of("local", &error, error.hint())
    }
}

impl From<DirsError> for CommandError {
    fn from(error: DirsError) -> Self {
        Self::of("local", &error, None)
    }
}

impl From<RegistryError> for CommandError {
    fn from(error: RegistryError) -> Self {
        let kind = if matches!(error, RegistryError::Unknown { .. }) { "unknown_vm" } else { "local" };
        Self::of(kind, &error, error.hint())
    }
}

impl From<VmNameError> for CommandError {
    fn from(error: VmNameError) -> Self {
        Self::of("usage", &error, Some(VmNameError::HINT.to_owned()))
    }
}

impl From<EndpointError> for CommandError {
    fn from(error: EndpointError) -> Self {
        Self::of("usage", &error, Some(error.hint().to_owned()))
    }
}

impl From<RunError> for CommandError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Connection(error) => error.into(),
            RunError::Failed(error) => Self::from_guest(&error),
            RunError::Exec(hospes_protocol::exec::ExecError::Cut { .. }) => Self::of(
                "lost",
                &error,
                Some("The guest may have stopped; what the command did before is done".to_owned()),
            ),
            RunError::Exec(_) => Self::of("protocol", &error, None),
            RunError::Stdio { .. } => Self::of("local", &error, None),
        }
    }
}

impl From<hospes_protocol::codec::CodecError> for CommandError {
    fn from(error: hospes_protocol::codec::CodecError) -> Self {
        Self::new("protocol", format_args!("The guest broke the protocol: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_are_made_safe_and_its_kinds_have_their_codes() {
        let error = WireError::new(ErrorKind::NOT_FOUND, "No \u{1b}[2Jprogram").hint("\u{202e}x");
        let told = CommandError::from_guest(&error);
        assert_eq!((told.code, told.kind.as_str()), (NOT_FOUND, "not_found"));
        assert_eq!(told.message, "No \\u{1b}[2Jprogram");
        assert_eq!(told.hint.as_deref(), Some("\\u{202e}x"));
        assert_eq!(CommandError::refused(&error).code, OURS);
        let unknown = WireError::new(ErrorKind(999), "later");
        assert_eq!(CommandError::from_guest(&unknown).kind, "other");
    }
}
