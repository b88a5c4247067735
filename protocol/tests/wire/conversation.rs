//! A recorded conversation: both directions' frames in one order.
//!
//! A `.conv` file is a list of records: one byte, `>` from host to guest or `<` from guest to host, and a whole frame.

use hospes_protocol::frame::{Frame, Header};
use hospes_protocol::limits::HEADER_LEN;

/// Who sent a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Host,
    Guest,
}

impl Side {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }
}

/// One frame as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) from: Side,
    pub(crate) wire: Vec<u8>,
}

impl Record {
    pub(crate) fn frame(&self) -> Frame<'_> {
        let header = Header::parse(*self.wire.first_chunk().unwrap()).unwrap();
        Frame { id: header.id, channel: header.channel, payload: &self.wire[HEADER_LEN..] }
    }
}

/// Splits bytes into frames; panics where they are none, for they are our own.
pub(crate) fn split(from: Side, mut wire: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some(header) = wire.first_chunk::<HEADER_LEN>() {
        let len = HEADER_LEN + Header::parse(*header).unwrap().len as usize;
        records.push(Record { from, wire: wire[..len].to_vec() });
        wire = &wire[len..];
    }
    assert!(wire.is_empty(), "a frame of our own is cut short");
    records
}

/// The file's bytes.
pub(crate) fn to_bytes(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.push(if record.from == Side::Host { b'>' } else { b'<' });
        bytes.extend_from_slice(&record.wire);
    }
    bytes
}

/// Reads a file's bytes.
pub(crate) fn from_bytes(mut bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((mark, rest)) = bytes.split_first() {
        let from = match mark {
            b'>' => Side::Host,
            b'<' => Side::Guest,
            other => panic!("{other:#x} is no direction"),
        };
        let len = HEADER_LEN + Header::parse(*rest.first_chunk().unwrap()).unwrap().len as usize;
        records.push(Record { from, wire: rest[..len].to_vec() });
        bytes = &rest[len..];
    }
    records
}
