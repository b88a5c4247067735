//! What the vectors' tests, their generator and the fuzz targets share: every message's shape, the conversations, and
//! the two ends that replay them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "test code outside of test functions")]

pub(crate) mod conversation;
pub(crate) mod folder;
pub(crate) mod hostile;
pub(crate) mod recode;
pub(crate) mod replay;
pub(crate) mod samples;
pub(crate) mod scripts;

use hospes_protocol::handshake::{Entropy, SessionId, machine_digest};
use hospes_protocol::keys::SecretKey;
use hospes_protocol::ticket::SessionSecret;

/// The host's key in every vector of every release.
pub(crate) fn host_key() -> SecretKey {
    SecretKey::from_bytes(&[0x11; 32])
}

/// The guest's key in every vector of every release.
pub(crate) fn guest_key() -> SecretKey {
    SecretKey::from_bytes(&[0x22; 32])
}

/// The host's random bytes in every vector of every release.
pub(crate) fn host_entropy() -> Entropy {
    Entropy { share: [0x33; 32], nonce: [0x44; 32], session: [0; 16] }
}

/// The guest's random bytes in every vector of every release.
pub(crate) fn guest_entropy() -> Entropy {
    Entropy { share: [0x55; 32], nonce: [0x66; 32], session: [0x77; 16] }
}

/// The guest's machine.
pub(crate) fn machine() -> [u8; 32] {
    machine_digest("00000000000000000000000000000001")
}

/// The session of conversations that open with a ticket.
pub(crate) fn ticket_session() -> (SessionId, SessionSecret) {
    (SessionId([0x88; 16]), SessionSecret::new([0x99; 32]))
}
