//! Listening sockets, made with the same care in the guest and on the host.
//!
//! [`tcp`] listens at one port on every address that a name has. [`unix`] listens at a path, for its user alone from the
//! first moment on, replaces what a process that was killed has left there and nothing else, and takes the name away
//! with the listener.

pub mod tcp;
pub mod unix;
