//! A FUSE server that passes directories of the host through: what a virtio-fs device answers with.
//!
//! # A primer
//!
//! The guest's kernel sends requests: a header, arguments, perhaps data; each but a few is answered. It names files by
//! **node**, a number that a lookup gave it and that it forgets some day, and open files by **handle**. Node 1 is the
//! root, which is no directory of the host: its entries are the **shares**. Each share is announced as a file system of
//! its own, so that it has its own device number and its own free space, and comes and goes while the guest runs.
//!
//! **Nothing leaves a share.** A share's root is a descriptor, opened once. From there on every call names one
//! component in a directory that is open, and follows no symbolic link: links are the guest's own to follow. Names
//! with a slash, and the two dots, are refused before anything looks at them ([`request`]). Only regular files are
//! opened; a guest cannot swap one for a device meanwhile, since its renames wait.
//!
//! **Nothing grows.** Nodes, handles and descriptors of directories are counted and capped ([`Limits`]); a node that
//! is not open holds no descriptor ([`node`]).
//!
//! **Cache mode.** The guest may believe names and attributes for one second; what it has cached of a file's data holds
//! until the file changes on the host, which is noticed when its attributes are next asked for (a second at the most)
//! and at each open. Nothing the guest wrote waits in the guest: a write is on the host when it returns, and on the disk after
//! fsync. Files may be mapped; a change on the host shows in a mapping when the guest next looks at the file.
//! Locks are the guest's own: its processes exclude each other, and not the host's.
//!
//! # Where it is
//!
//! [`abi`] constants; [`request`] decodes; [`reply`] encodes; [`server`] ties them together; `names`, `files`,
//! `attributes` and `listing` the operations; [`node`], [`handle`] and [`share`] what they are about; [`owner`] who
//! owns what; [`sys`] the host's calls.

mod attributes;
mod files;
pub mod handle;
mod listing;
mod names;
pub mod node;
pub mod owner;
pub mod replay;
pub mod reply;
pub mod server;
pub mod share;
pub mod sys;
pub mod watch;

pub use hospes_fuse::{abi, request};
pub use owner::{Ids, Owner, OwnerError};
pub use server::{Limits, Server};
pub use share::{Share, ShareError, ShareSpec};
