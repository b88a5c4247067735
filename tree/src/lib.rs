//! What both ends of a copy do with files.
//!
//! ```text
//!   read ──frames──▶ transfer::send ═══ connection ═══▶ transfer::receive ──frames──▶ write
//!   (a thread)       (the caller's)                     (the caller's)                (a thread)
//! ```
//! [`read`] turns directories and files into the records of an [`archive`](hospes_protocol::copy::archive), [`mod@write`]
//! turns them back, and [`transfer`] carries the frames between, over a connection that may be cut and replaced. The
//! disk and the connection have a thread each, so that neither waits for the other: in an emulated or busy guest that
//! is half of the speed.
//!
//! Whoever writes trusts nobody: not the archive's sender, and not other users of the directories it writes to. Below
//! the target every step is one name, relative to an open directory, and no symbolic link is followed.

mod directory;
mod exclude;
mod fault;
pub mod frames;
pub mod progress;
pub mod read;
pub mod transfer;
pub mod write;
mod xattr;

pub use exclude::{Exclude, PatternError};
pub use fault::{Problem, Problems, Summary};
