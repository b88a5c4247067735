//! How a message becomes bytes: bincode 2.0.1, little-endian, variable-length integers, and nowhere else in the tree.
//!
//! The golden vectors in `vectors/` fix the bytes, so this module could be rewritten by hand with no change on the
//! wire.

use bincode::config::{Configuration, Limit, LittleEndian, Varint, standard};
use serde::{Serialize, de::DeserializeOwned};

use crate::limits::LARGE_MESSAGE_LEN;

/// Why bytes are not the message their id promises. The sender is at fault.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The payload is cut short, over a length limit, or no encoding of this type.
    #[error("Message {what} does not decode: {reason}")]
    Malformed {
        /// The type's name.
        what: &'static str,
        /// The decoder's words.
        reason: String,
    },
    /// The payload goes on after the message's end.
    #[error("Message {what} is {len} bytes and ends after {used}")]
    Trailing {
        /// The type's name.
        what: &'static str,
        /// Bytes in the payload.
        len: usize,
        /// Bytes the message took.
        used: usize,
    },
}

const DECODE_LIMIT: usize = LARGE_MESSAGE_LEN as usize;

fn config() -> Configuration<LittleEndian, Varint, Limit<DECODE_LIMIT>> {
    standard().with_limit::<DECODE_LIMIT>()
}

/// Appends `message` to `out`.
///
/// # Panics
/// Never for our own message types: they hold no map of unknown length and no type that refuses to serialize.
pub fn encode_into<T: Serialize>(message: &T, out: &mut Vec<u8>) {
    // `encode_to_vec` is bincode's only alloc-and-serde entry; the extra copy is of a small message.
    let bytes = bincode::serde::encode_to_vec(message, standard());
    out.extend_from_slice(&bytes.expect("a message of our own serializes"));
}

/// Reads one message that fills `payload` exactly.
///
/// # Errors
/// [`CodecError`] where the bytes are cut short, too long, or no such message.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let what = short_name::<T>();
    let (message, used) = bincode::serde::decode_from_slice::<T, _>(payload, config())
        .map_err(|error| CodecError::Malformed { what, reason: std::format!("{error}") })?;
    if used != payload.len() {
        return Err(CodecError::Trailing { what, len: payload.len(), used });
    }
    Ok(message)
}

/// Reads the value that `payload` begins with, and leaves the rest.
///
/// # Errors
/// [`CodecError::Malformed`].
pub fn decode_first<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    let what = short_name::<T>();
    bincode::serde::decode_from_slice::<T, _>(payload, config())
        .map(|(first, _)| first)
        .map_err(|error| CodecError::Malformed { what, reason: format!("{error}") })
}

fn short_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;

    #[test]
    fn a_claimed_length_beyond_the_payload_is_refused_without_allocating_it() {
        // A string that says it has 2^60 bytes: marker 253 and eight length bytes.
        let mut bytes = std::vec![253];
        bytes.extend_from_slice(&(1u64 << 60).to_le_bytes());
        assert!(matches!(decode::<String>(&bytes), Err(CodecError::Malformed { .. })));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        assert!(matches!(decode::<u8>(&[1, 2]), Err(CodecError::Trailing { len: 2, used: 1, .. })));
    }
}
