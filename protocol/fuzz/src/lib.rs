//! What the fuzz targets do with an input: bytes of a hostile peer, and moves of our own rim, against the protocol's
//! machines. `tests/smoke.rs` runs the same with a seeded generator in every `cargo test`.
//!
//! A function returns where the peer was refused; it panics where a machine did, or broke a promise of its own.

mod clipboard;
mod connection;
mod exec;
mod forward;
mod input;
mod qga;
#[path = "../../tests/wire/recode.rs"]
mod recode;

pub use clipboard::clipboard;
pub use connection::{archive, control_number, frame, handshake_guest, handshake_host, messages, ticket};
pub use exec::{exec_guest, exec_host, exec_pair};
pub use forward::forward;
pub use qga::qga;

/// A target: its input goes in, and it panics where something is wrong.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also its file's in `fuzz_targets/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("archive", archive),
    ("clipboard", clipboard),
    ("control_number", control_number),
    ("exec_guest", exec_guest),
    ("exec_host", exec_host),
    ("exec_pair", exec_pair),
    ("forward", forward),
    ("frame", frame),
    ("handshake_guest", handshake_guest),
    ("handshake_host", handshake_host),
    ("messages", messages),
    ("qga", qga),
    ("ticket", ticket),
];
