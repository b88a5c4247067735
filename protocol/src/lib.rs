//! What a Hospes host and guest say to each other: frames, messages and pure state machines.
#![forbid(unsafe_code)]

mod open_enum;

pub mod codec;
pub mod control;
pub mod error;
pub mod exec;
pub mod file;
pub mod forward;
pub mod frame;
pub mod handshake;
pub mod info;
pub mod keys;
pub mod limits;
pub mod power;
pub mod process;
pub mod stream;
pub mod ticket;
pub mod variable;
pub mod version;
