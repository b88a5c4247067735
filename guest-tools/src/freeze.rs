//! Freezing file systems, so that a snapshot of their disks is whole: what is frozen and in which order, and the helper
//! that does it.
//!
//! ```text
//!  hospes-toolsd ── /run/hospes/freeze.sock ── hospes-freeze ── FIFREEZE, FITHAW, FITRIM
//!   policy, scripts, audit,                     locked memory, a deadline of its own
//!   "busy" to everybody else
//! ```
//! The helper is a program of its own because who has frozen the root file system may not write a log line, fault in a
//! page or ask for memory until it is thawed: each may wait for the very disk that stands still. It makes all that it
//! needs before, and then counts on nobody: not on the daemon, not on the host.
//!
//! [`mounts`] reads what is mounted and [`plan`] decides, both pure; [`engine`] freezes and thaws over an [`edge`], which
//! in tests is a fake; [`helper`] serves the daemon and keeps the deadline; [`wire`] is what the two say to each other.

pub mod edge;
pub mod engine;
pub mod helper;
pub mod mounts;
pub mod plan;
pub mod wire;
