//! The real worker on a Unix socket, driven through the handoff as the daemon does it and by the host's own machine.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod worker;

#[path = "session/activation.rs"]
mod activation;
#[path = "session/basics.rs"]
mod basics;
#[path = "session/ends.rs"]
mod ends;
#[path = "session/hostile.rs"]
mod hostile;
#[path = "session/kept.rs"]
mod kept;
#[path = "session/many.rs"]
mod many;
#[path = "session/processes.rs"]
mod processes;
#[path = "session/terminal.rs"]
mod terminal;
