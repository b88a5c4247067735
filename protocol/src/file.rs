//! File verbs: what scripts do to a guest's files without a shell. One request on a connection, as the user.
//!
//! ```text
//! host                                   guest's worker
//!  | FILE request                         |
//!  | DATA 0 … END 0     (write only)      |
//!  |------------------------------------->|
//!  |   FILE_ENTRIES …   (list only)       |
//!  |   DATA 1 … END 1   (read only)       |
//!  |   FILE_REPLY answer, or FAILED       |
//!  |<-------------------------------------|
//! ```
//! A relative path starts at the user's home. The reply comes last: bytes without it were cut short.

use serde::{Deserialize, Serialize};

use crate::limits::PATH;

/// The stream of bytes to write.
pub const WRITTEN: u16 = 0;
/// The stream of bytes read.
pub const READ: u16 = 1;

/// One file verb.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    /// The user; empty as in [`Exec::user`](crate::exec::Exec::user).
    pub user: String,
    /// What to do.
    pub verb: Verb,
}

/// What to do. A variant's place is its number on the wire: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// Describe a path.
    Stat {
        /// Which.
        path: Vec<u8>,
        /// What a symbolic link points to, and not the link.
        follow: bool,
    },
    /// List a directory.
    List {
        /// Which.
        path: Vec<u8>,
    },
    /// Make a directory.
    Mkdir {
        /// Which.
        path: Vec<u8>,
        /// Its parents too, and no error where it exists.
        parents: bool,
        /// Permission bits, exact; without, 0777 less the user's umask.
        mode: Option<u32>,
    },
    /// Remove a file or an empty directory.
    Remove {
        /// Which. A symbolic link is removed itself.
        path: Vec<u8>,
        /// A directory with all that is in it.
        recursive: bool,
        /// No error where it is missing.
        force: bool,
    },
    /// Rename.
    Rename {
        /// From.
        from: Vec<u8>,
        /// To.
        to: Vec<u8>,
        /// Replace what is there; else that is an error.
        replace: bool,
    },
    /// Make a file or directory with a new name that nobody could foretell, for the user alone.
    Temp {
        /// In which directory; `/tmp` (or the user's `TMPDIR`) without.
        directory: Option<Vec<u8>>,
        /// The name starts with this.
        prefix: Vec<u8>,
        /// The name ends with this.
        suffix: Vec<u8>,
        /// A directory in place of a file.
        make_directory: bool,
    },
    /// Read a file.
    Read {
        /// Which.
        path: Vec<u8>,
        /// From this byte.
        offset: u64,
        /// At most this many bytes; to the end without.
        len: Option<u64>,
    },
    /// Write a file with the bytes of stream 0. All or nothing: it is replaced when the last byte has arrived, unless
    /// it is appended to.
    Write {
        /// Which.
        path: Vec<u8>,
        /// Behind what is there.
        append: bool,
        /// Replace what is there; else that is an error.
        replace: bool,
        /// Permission bits, exact; without, the old file's, or 0666 less the user's umask.
        mode: Option<u32>,
    },
}

impl Verb {
    /// Its word, as the command line, the policy's audit and people have it.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Stat { .. } => "stat",
            Self::List { .. } => "ls",
            Self::Mkdir { .. } => "mkdir",
            Self::Remove { .. } => "rm",
            Self::Rename { .. } => "mv",
            Self::Temp { .. } => "mktemp",
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
        }
    }

    /// The paths it names.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        let (first, second): (Option<&Vec<u8>>, Option<&Vec<u8>>) = match self {
            Self::Stat { path, .. }
            | Self::List { path }
            | Self::Mkdir { path, .. }
            | Self::Remove { path, .. }
            | Self::Read { path, .. }
            | Self::Write { path, .. } => (Some(path), None),
            Self::Rename { from, to, .. } => (Some(from), Some(to)),
            Self::Temp { directory, .. } => (directory.as_ref(), None),
        };
        first.into_iter().chain(second).map(Vec::as_slice)
    }

    /// Whether every path is one that a kernel could take: not empty, within `PATH_MAX`, no NUL.
    #[must_use]
    pub fn paths_are_sane(&self) -> bool {
        let names_sane = match self {
            Self::Temp { prefix, suffix, .. } => [prefix, suffix]
                .iter()
                .all(|part| part.len() <= 200 && !part.iter().any(|b| *b == 0 || *b == b'/')),
            _ => true,
        };
        names_sane && self.paths().all(|path| !path.is_empty() && path.len() <= PATH && !path.contains(&0))
    }
}

/// What a file is, as lstat(2) has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stat {
    /// Type and permission bits, `st_mode`.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Modified, seconds since 1970.
    pub mtime_s: i64,
    /// Modified, nanoseconds in that second.
    pub mtime_ns: u32,
    /// Owner's user id.
    pub uid: u32,
    /// Owner's group id.
    pub gid: u32,
    /// Owner's name, or empty.
    pub user: String,
    /// Group's name, or empty.
    pub group: String,
    /// Hard links.
    pub links: u64,
    /// Where a symbolic link points, or empty.
    pub target: Vec<u8>,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name: one component, never `.` or `..`.
    pub name: Vec<u8>,
    /// What it is.
    pub stat: Stat,
}

/// A part of a listing, in no order. A directory takes as many as it needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Entries(pub Vec<Entry>);

/// The last word on a request that succeeded. A variant's place is its number on the wire: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileReply {
    /// It is done.
    Done,
    /// To [`Verb::Stat`].
    Stat(Stat),
    /// To [`Verb::Temp`]: the new path.
    Path(Vec<u8>),
    /// To [`Verb::Read`], [`Verb::Write`] and [`Verb::List`]: how many bytes or entries there were.
    Count(u64),
}
