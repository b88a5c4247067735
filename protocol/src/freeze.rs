//! Freeze, thaw and trim: a guest's file systems held still while the host takes a snapshot of their disks.
//!
//! ```text
//! host                                   guest
//!  | Freeze, 10 s                         | freeze.d, then FIFREEZE on each file system
//!  |------------------------------------->|
//!  |                  Frozen, serial 7    |
//!  |<-------------------------------------|   … the snapshot …
//!  | Thaw, serial 7                       | FITHAW on each, then thaw.d
//!  |------------------------------------->|
//!  |                  Thawed, held        |
//! ```
//! The guest thaws by itself when the time is up, whoever is still there. The answer to a thaw says whether the file
//! systems were still then up to that moment: a snapshot that took longer is none to rely on. While they are frozen,
//! requests that may write are answered `BUSY` at once.
//!
//! Each of these requests comes alone on a connection of its own.

use serde::{Deserialize, Serialize};

use crate::error::WireError;
use crate::open_enum;
use crate::power::ScriptReport;

/// Freezes what can be frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// Milliseconds after which the guest thaws by itself, from the first file system that is frozen. The guest's own
    /// policy may allow less, and then refuses.
    pub timeout_ms: u64,
    /// Milliseconds for each script; none for the guest's own setting.
    pub script_timeout_ms: Option<u64>,
}

open_enum! {
    /// What became of one file system.
    pub struct FsState(u8) {
        /// It is frozen; after a thaw, it was until then.
        FROZEN = 0,
        /// It is left out, for it has no disk of its own: the kernel's, or in memory.
        PSEUDO = 1,
        /// It is left out: another machine keeps it.
        NETWORK = 2,
        /// It is left out: a program in the guest keeps it, which could not answer while others are frozen.
        FUSE = 3,
        /// It is left out: the host keeps it.
        SHARED = 4,
        /// It is left out: it lies on others, which are frozen themselves.
        STACKED = 5,
        /// It is left out: nothing can be written to it.
        READ_ONLY = 6,
        /// It was written out and left: its kind cannot be frozen.
        INCAPABLE = 7,
        /// It could not be frozen, or not be thawed; the error says why.
        FAILED = 8,
        /// It was not tried, or thawed again, since another failed.
        UNDONE = 9,
    }
}

/// One file system, told once however often it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Where it is mounted: the first place.
    pub mount: Vec<u8>,
    /// Its kind: `ext4`.
    pub kind: String,
    /// What became of it.
    pub state: FsState,
    /// Why, in the kernel's words; empty where the state says it.
    pub error: String,
}

/// What came of a freeze.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FreezeReply {
    /// The freeze's number, which the thaw names; zero where it was refused.
    pub serial: u64,
    /// Microseconds from the first file system's freeze to the last one's.
    pub took_us: u64,
    /// In the order in which they were frozen, and what was left out behind them.
    pub file_systems: Vec<FileSystem>,
    /// The guest's scripts before it, in order.
    pub scripts: Vec<ScriptReport>,
    /// Why nothing is frozen now; none where it is.
    pub refused: Option<WireError>,
}

/// Thaws.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thaw {
    /// The freeze that is meant; none for whichever there is.
    pub serial: Option<u64>,
}

open_enum! {
    /// Why it was thawed.
    pub struct ThawCause(u8) {
        /// Somebody asked.
        ASKED = 0,
        /// The time was up.
        DEADLINE = 1,
        /// The guest's helper was told to end, or ended.
        ENDED = 2,
    }
}

/// What came of a thaw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThawReply {
    /// The freeze's number.
    pub serial: u64,
    /// Why it was thawed: only with `ASKED` was everything still until this request.
    pub cause: ThawCause,
    /// Microseconds from the last file system's freeze to the first one's thaw; zero where nobody knows.
    pub held_us: u64,
    /// Those that were frozen, in the order in which they were thawed.
    pub file_systems: Vec<FileSystem>,
    /// The guest's scripts after it, in order.
    pub scripts: Vec<ScriptReport>,
}

/// Tells each file system's disk which blocks nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trim {
    /// Bytes of the smallest free range that is worth telling.
    pub minimum: u64,
}

/// What came of a trim of one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trimmed {
    /// Where it is mounted.
    pub mount: Vec<u8>,
    /// Its kind.
    pub kind: String,
    /// Bytes that its disk was told of; or why none. `UNSUPPORTED` where the disk or the file system has no such thing.
    pub bytes: Result<u64, WireError>,
}

/// What came of a trim.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrimReply {
    /// Each file system that lies on a disk and can be written to.
    pub file_systems: Vec<Trimmed>,
}
