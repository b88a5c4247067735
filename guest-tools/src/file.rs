//! File verbs: what scripts do to a guest's files without a shell, with the user's own rights.
//!
//! The verbs are plain blocking functions on paths. `serve` carries one request over its connection and runs them on
//! other threads, since a path may lead to a file system that answers late or never.
//!
//! A relative path starts at the user's home. `~` means nothing here, as in every system call: a shell would have put
//! the *host's* home in its place.

mod act;
mod error;
mod list;
mod path;
mod read;
mod remove;
mod serve;
mod stat;
mod write;

pub use act::{make_directory, make_temporary, rename};
pub use error::FileError;
pub use list::Listing;
pub use path::Home;
pub use read::Reader;
pub use remove::remove;
pub(crate) use serve::serve;
pub use stat::{Names, stat};
pub use write::{WriteOptions, Writer};
