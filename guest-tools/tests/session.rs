//! The real worker on a Unix socket, driven through the handoff as the daemon does it and by the host's own machine.

mod worker;

#[path = "session/basics.rs"]
mod basics;
