//! Exec in the guest: a command of the user's, from its request to the host's goodbye.
//!
//! ```text
//! Exec ─ plan ─► program, arguments, environment ─ start ─► child, pipes or terminal ─ run ─► frames
//!                                                            └─ end: hang up, kill, whole session
//! ```
//! [`plan`] is pure; [`start`] makes the process; [`run`] joins its descriptors to the connection until both are done;
//! [`kept`] is what it leaves behind when it runs without a connection; [`end`] ends what does not end by itself.
//!
//! # What a command gets
//! A session and process group of its own. Its environment is the PAM session's, without the service manager's own
//! variables, with `HOME`, `USER`, `LOGNAME` and `SHELL` of the user, a `PATH`, `TERM` where it has a terminal, and
//! then the request's. It starts in its user's home.
//!
//! # When it is over
//! When the command itself has ended and what it wrote before has been sent. Processes that it left in the background
//! and that still hold its output are not waited for, and run on.

pub(crate) mod end;
pub(crate) mod environment;
pub(crate) mod kept;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod start;

mod ring;
mod stdin;
