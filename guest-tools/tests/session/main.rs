//! The real worker on a Unix socket, driven through the handoff as the daemon does it and by the host's own machine.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod activation;
mod basics;
mod ends;
mod hostile;
mod kept;
mod many;
mod processes;
mod terminal;
mod worker;
