//! Copy: files and trees, either way, on one connection that may be cut and taken up again.
//!
//! ```text
//! host                                guest's worker     host                                guest's worker
//!  | COPY_PUSH id, target               |                 | COPY_PULL id, sources              |
//!  | DATA 0 …                           |                 |----------------------------------->|
//!  |----------------------------------->|                 |                      DATA 0 …      |
//!  |                        CREDIT 0 …  |                 |<-----------------------------------|
//!  |<-----------------------------------|                 | CREDIT 0 …                         |
//!  | END 0                              |                 |----------------------------------->|
//!  |----------------------------------->|                 |                      END 0         |
//!  |        COPY_PROBLEM … COPY_DONE    |                 |<-----------------------------------|
//!  |<-----------------------------------|                 | BYE                                |
//!  | BYE                                |                 |----------------------------------->|
//! ```
//! Stream 0 is an [`archive`]: records of directories, files and their bytes. A record never straddles two data frames,
//! so a data frame is also the unit in which a cut copy goes on.
//!
//! **After a cut** both ends keep what they have for [`COPY_PARKED_MS`](crate::limits::COPY_PARKED_MS). The host opens
//! another connection and says `COPY_RESUME` with the copy's id and the archive bytes that it has taken; the guest
//! answers `COPY_POSITION` with the bytes that it has taken (a push) or the same number (a pull), and the sender goes on
//! from exactly there. The stream counts from zero again: its credit and its end are the new connection's own. The
//! sender keeps the frames that the other side has not yet granted again, which is never more than the credit window.
//!
//! **A file is in place whole or not at all.** What one entry could not be (unreadable, refused, no room) is that
//! entry's problem and not the copy's: the sender says it as a record, the receiver as `COPY_PROBLEM` after the
//! archive's end. The first [`COPY_PROBLEMS`](crate::limits::COPY_PROBLEMS) are named, the rest counted.

use serde::{Deserialize, Serialize};

use crate::error::WireError;
use crate::limits::{COPY_PATTERNS, COPY_SOURCES, PATH, USER_NAME};

pub mod archive;

/// The number of the stream that carries the archive.
pub const ARCHIVE: u16 = 0;

/// Names a copy over its connections. Random, chosen by the host: who knows it may go on with the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CopyId(pub [u8; 16]);

/// Host to guest: take an archive and write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Whose files; empty as in [`Exec::user`](crate::exec::Exec::user).
    pub user: String,
    /// The copy's name.
    pub id: CopyId,
    /// Where to. A relative path starts at the user's home, and so does `~/`.
    pub target: Vec<u8>,
    /// Several sources, or contents: the target is a directory, made where it is missing.
    pub into: bool,
    /// Keep set-user-id and set-group-id bits.
    pub special_bits: bool,
    /// An extended attribute that cannot be kept is a problem, and not passed over.
    pub strict: bool,
}

/// Host to guest: send an archive of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// Whose files; empty as in [`Exec::user`](crate::exec::Exec::user).
    pub user: String,
    /// The copy's name.
    pub id: CopyId,
    /// What. One that ends in a slash stands for the directory's contents.
    pub sources: Vec<Vec<u8>>,
    /// Patterns of names to leave out.
    pub exclude: Vec<Vec<u8>>,
    /// Count first, and say the [`Total`](archive::Record::Total), for a progress display.
    pub count: bool,
}

/// Host to guest: go on with a copy whose connection was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Whose files, as the copy's request had it.
    pub user: String,
    /// Which copy.
    pub id: CopyId,
    /// Archive bytes that the host has taken; zero where it sends.
    pub taken: u64,
}

/// Guest to host: the archive goes on here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Archive bytes that the receiver has taken.
    pub taken: u64,
}

/// Guest to host: what one entry of a push could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The entry's path, from the target.
    pub path: Vec<u8>,
    /// What happened.
    pub error: WireError,
}

/// What a copy did. Guest to host as the end of a push, after its problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {
    /// Files in place, hard links not counted.
    pub files: u64,
    /// Directories made or merged into.
    pub directories: u64,
    /// Symbolic and hard links, and FIFOs.
    pub links: u64,
    /// Bytes of the files in place, holes included.
    pub bytes: u64,
    /// Entries that had a problem, named or not.
    pub problems: u64,
}

/// Why a request is refused before anything is done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It passes a limit.
    #[error("The request has {count} {what}, the limit is {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A path is empty or holds a NUL byte.
    #[error("The request has a path that is empty or has a NUL byte in it")]
    Path,
    /// Nothing to copy.
    #[error("The request names no source")]
    NoSource,
}

impl Push {
    /// Holds the request against its limits.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn check(&self) -> Result<(), RequestError> {
        at_most("bytes of user name", self.user.len(), USER_NAME)?;
        path(&self.target)
    }
}

impl Pull {
    /// Holds the request against its limits.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn check(&self) -> Result<(), RequestError> {
        at_most("bytes of user name", self.user.len(), USER_NAME)?;
        at_most("sources", self.sources.len(), COPY_SOURCES)?;
        at_most("patterns", self.exclude.len(), COPY_PATTERNS)?;
        if self.sources.is_empty() {
            return Err(RequestError::NoSource);
        }
        self.exclude.iter().try_for_each(|pattern| at_most("bytes of pattern", pattern.len(), PATH))?;
        self.sources.iter().try_for_each(|source| path(source))
    }
}

fn path(bytes: &[u8]) -> Result<(), RequestError> {
    at_most("bytes of path", bytes.len(), PATH)?;
    if bytes.is_empty() || bytes.contains(&0) { Err(RequestError::Path) } else { Ok(()) }
}

const fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), RequestError> {
    if count > max { Err(RequestError::TooMany { what, count, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
