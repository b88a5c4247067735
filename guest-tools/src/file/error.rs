//! What a file verb reports when it fails: the act, the path as the caller wrote it, and the kernel's reason.

use hospes_protocol::error::{ErrorKind, WireError};
use nix::errno::Errno;

/// Why a file verb failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The kernel refused.
    #[error("Could not {act} {}: {}", shown(.path), .errno.desc())]
    Os {
        /// What was tried.
        act: &'static str,
        /// To what.
        path: Vec<u8>,
        /// The kernel's reason.
        errno: Errno,
    },
    /// We refuse, before the kernel could.
    #[error("Could not {act} {}: {reason}", shown(.path))]
    Refused {
        /// What was tried.
        act: &'static str,
        /// To what.
        path: Vec<u8>,
        /// What kind of refusal.
        kind: ErrorKind,
        /// Why.
        reason: &'static str,
        /// What to do instead, or empty.
        hint: &'static str,
    },
    /// A tree could not be removed whole.
    #[error("{first}, and {more} more could not be removed")]
    Several {
        /// The first failure.
        first: Box<FileError>,
        /// How many followed.
        more: u64,
    },
}

impl FileError {
    /// The kernel's refusal of `act` on `path`; made to fit `map_err`.
    pub fn os(act: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Os { act, path: path.to_vec(), errno }
    }

    /// What the kernel said, where it was the kernel.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Os { errno, .. } => Some(*errno),
            Self::Refused { .. } => None,
            Self::Several { first, .. } => first.errno(),
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Os { errno, .. } => kind(*errno),
            Self::Refused { kind, .. } => *kind,
            Self::Several { first, .. } => first.kind(),
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Refused { hint, .. } => hint,
            Self::Os { errno: Errno::ENOENT, path, .. } if path.starts_with(b"~/") => {
                "Leave out ~/: a relative path starts at the user's home in the guest"
            }
            Self::Os { errno: Errno::EEXIST, act: "rename" | "write", .. } => {
                "Leave out --no-clobber to replace it"
            }
            Self::Os { errno: Errno::ENOTEMPTY | Errno::EISDIR, act: "remove", .. } => {
                "Say --recursive to remove a directory with all that is in it"
            }
            Self::Os { errno: Errno::EXDEV, act: "rename", .. } => {
                "It would leave its file system; use exec with mv, or copy it and remove it"
            }
            Self::Os { .. } | Self::Several { .. } => "",
        }
    }
}

impl From<&FileError> for WireError {
    fn from(error: &FileError) -> Self {
        Self::new(error.kind(), error).hint(error.hint())
    }
}

/// The word that programs get for a kernel's reason.
#[must_use]
pub(super) fn kind(errno: Errno) -> ErrorKind {
    match errno {
        Errno::ENOENT => ErrorKind::NOT_FOUND,
        Errno::EEXIST => ErrorKind::EXISTS,
        Errno::EACCES | Errno::EPERM => ErrorKind::PERMISSION,
        Errno::ENOTDIR | Errno::EISDIR | Errno::ENOTEMPTY => ErrorKind::FILE_KIND,
        Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => ErrorKind::NO_SPACE,
        Errno::EROFS | Errno::ETXTBSY => ErrorKind::READ_ONLY,
        Errno::EBUSY => ErrorKind::BUSY,
        Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => ErrorKind::LIMIT,
        Errno::ETIMEDOUT => ErrorKind::TIMED_OUT,
        _ => ErrorKind::OS,
    }
}

/// A path as one quoted line, whatever its bytes are.
#[must_use]
pub(super) fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len() + 2);
    text.push('"');
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '"' || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_act_path_and_reason_and_is_one_clean_line() {
        let error = FileError::os("read", b"a\x1b[2J\xff\n")(Errno::EACCES);
        let wire = WireError::from(&error);
        assert_eq!(wire.message, "Could not read \"a\\u{1b}[2J\\xff\\n\": Permission denied");
        assert_eq!(wire.kind, ErrorKind::PERMISSION);
    }

    #[test]
    fn a_tilde_that_a_shell_left_alone_is_explained() {
        let wire = WireError::from(&FileError::os("read", b"~/notes")(Errno::ENOENT));
        assert!(wire.hint.contains("Leave out ~/"), "{}", wire.hint);
        assert!(WireError::from(&FileError::os("read", b"/notes")(Errno::ENOENT)).hint.is_empty());
    }
}
