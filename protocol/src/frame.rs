//! Frames: what every connection carries in both directions, from its first byte to its last.
//!
//! ```text
//!  0       2         4                 8
//!  +-------+---------+-----------------+----------- - -
//!  | id    | channel | payload length  | payload
//!  | u16   | u16     | u32             |
//!  +-------+---------+-----------------+----------- - -      all little-endian
//! ```
//! The header stands outside the codec, so that a frame can be skipped, forwarded or spliced without decoding it. The
//! channel is a stream's number on stream frames ([`FrameId::DATA`], [`FrameId::CREDIT`], [`FrameId::END`],
//! [`FrameId::UNWANTED`]) and zero elsewhere. Ids of one feature share their high byte.

use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{self, CodecError};
use crate::limits::{DATA_LEN, HANDSHAKE_LEN, HEADER_LEN, LARGE_MESSAGE_LEN, MESSAGE_LEN};
use crate::open_enum;

open_enum! {
    /// What a frame is. Released numbers never change their meaning or their payload's bytes.
    pub struct FrameId(u16) {
        /// Host to guest, first: [`ClientHello`](crate::handshake::ClientHello).
        CLIENT_HELLO = 0x0001,
        /// Guest to host: [`ServerHello`](crate::handshake::ServerHello).
        SERVER_HELLO = 0x0002,
        /// Host to guest: [`ClientAuth`](crate::handshake::ClientAuth).
        CLIENT_AUTH = 0x0003,
        /// Guest to host: [`Ready`](crate::handshake::Ready), the host is trusted.
        READY = 0x0004,
        /// Host to guest, first: a [`Ticket`](crate::ticket::Ticket) in place of a handshake.
        TICKET = 0x0005,
        /// Guest to host: [`Opened`](crate::ticket::Opened), the ticket holds.
        OPENED = 0x0006,
        /// Either way, last: a [`WireError`](crate::error::WireError).
        FAILED = 0x0007,
        /// Either way: [`Unknown`](crate::error::Unknown), the answer to an id that the receiver does not know.
        UNKNOWN = 0x0008,
        /// Host to guest, last: the host has all it wanted. No payload.
        BYE = 0x0009,
        /// Guest to host: [`Announce`](crate::handshake::Announce), on the announce port.
        ANNOUNCE = 0x000a,

        /// Either way, on a stream: raw bytes.
        DATA = 0x0010,
        /// Either way, on a stream: a u32, so many more bytes may be sent.
        CREDIT = 0x0011,
        /// Either way, on a stream: a u64, the stream's bytes in all. Nothing follows on it.
        END = 0x0012,
        /// Either way, on a stream: its receiver wants no more of it. No payload.
        UNWANTED = 0x0013,

        /// Host to guest: [`Exec`](crate::exec::Exec).
        EXEC = 0x0100,
        /// Guest to host: [`Started`](crate::exec::Started).
        EXEC_STARTED = 0x0101,
        /// Host to guest: [`Signal`](crate::exec::Signal).
        EXEC_SIGNAL = 0x0102,
        /// Host to guest: [`WindowSize`](crate::exec::WindowSize).
        EXEC_RESIZE = 0x0103,
        /// Guest to host: [`Exited`](crate::exec::Exited).
        EXEC_EXITED = 0x0104,
        /// Host to guest: [`Attach`](crate::exec::Attach).
        EXEC_ATTACH = 0x0105,
        /// Host to guest: let the command run on without this connection. No payload.
        EXEC_DETACH = 0x0106,

        /// Host to guest: [`Ps`](crate::process::Ps).
        PS = 0x0200,
        /// Guest to host: [`Processes`](crate::process::Processes).
        PROCESSES = 0x0201,
        /// Host to guest: [`Kill`](crate::process::Kill).
        KILL = 0x0202,
        /// Guest to host: [`Killed`](crate::process::Killed).
        KILLED = 0x0203,

        /// Host to guest: this connection is a control session. No payload.
        CONTROL = 0x0300,
        /// Host to guest, in a control session, or alone on a connection of its own:
        /// [`Request`](crate::control::Request).
        REQUEST = 0x0301,
        /// Guest to host, in a control session: [`Reply`](crate::control::Reply).
        REPLY = 0x0302,
        /// Guest to host, in a control session: [`Event`](crate::control::Event).
        EVENT = 0x0303,

        /// Host to guest: [`Push`](crate::copy::Push).
        COPY_PUSH = 0x0400,
        /// Host to guest: [`Pull`](crate::copy::Pull).
        COPY_PULL = 0x0401,
        /// Host to guest: [`Resume`](crate::copy::Resume).
        COPY_RESUME = 0x0402,
        /// Guest to host: [`Position`](crate::copy::Position).
        COPY_POSITION = 0x0403,
        /// Guest to host: [`Problem`](crate::copy::Problem).
        COPY_PROBLEM = 0x0404,
        /// Guest to host: [`Done`](crate::copy::Done).
        COPY_DONE = 0x0405,

        /// Host to guest: [`FileRequest`](crate::file::FileRequest).
        FILE = 0x0500,
        /// Guest to host: [`FileReply`](crate::file::FileReply).
        FILE_REPLY = 0x0501,
        /// Guest to host: [`Entries`](crate::file::Entries).
        FILE_ENTRIES = 0x0502,

        /// Host to guest: [`Connect`](crate::forward::Connect).
        FORWARD_CONNECT = 0x0600,
        /// Host to guest: [`Listen`](crate::forward::Listen).
        FORWARD_LISTEN = 0x0601,
        /// Host to guest: [`Accept`](crate::forward::Accept).
        FORWARD_ACCEPT = 0x0602,
        /// Guest to host: [`Open`](crate::forward::Open).
        FORWARD_OPEN = 0x0603,
        /// Guest to host: [`Listening`](crate::forward::Listening).
        FORWARD_LISTENING = 0x0604,
        /// Guest to host: [`Incoming`](crate::forward::Incoming).
        FORWARD_INCOMING = 0x0605,
        /// Host to guest: [`Refuse`](crate::forward::Refuse).
        FORWARD_REFUSE = 0x0606,

        /// Host to guest: [`Time`](crate::time::Time).
        TIME = 0x0700,
        /// Guest to host: [`Probe`](crate::time::Probe).
        TIME_PROBE = 0x0701,
        /// Host to guest: [`Stamp`](crate::time::Stamp).
        TIME_STAMP = 0x0702,
        /// Guest to host: [`Report`](crate::time::Report).
        TIME_REPORT = 0x0703,

        /// Host to guest: [`Share`](crate::clipboard::Share).
        CLIPBOARD = 0x0a00,
        /// Guest to host: [`Ready`](crate::clipboard::Ready).
        CLIPBOARD_READY = 0x0a01,
        /// Either way: [`Offer`](crate::clipboard::Offer).
        CLIPBOARD_OFFER = 0x0a02,
        /// Guest to host: [`Want`](crate::clipboard::Want).
        CLIPBOARD_WANT = 0x0a03,
        /// Host to guest: [`Decline`](crate::clipboard::Decline).
        CLIPBOARD_DECLINE = 0x0a04,
        /// Host to guest: [`Fetch`](crate::clipboard::Fetch).
        CLIPBOARD_FETCH = 0x0a05,
        /// Host to guest: [`Feed`](crate::clipboard::Feed).
        CLIPBOARD_FEED = 0x0a06,
        /// Host to guest: [`Set`](crate::clipboard::Set).
        CLIPBOARD_SET = 0x0a07,
        /// Guest to host: [`Taken`](crate::clipboard::Taken).
        CLIPBOARD_TAKEN = 0x0a08,
        /// Host to guest: [`Files`](crate::clipboard::files::Files).
        CLIPBOARD_FILES = 0x0a09,
        /// Guest to host: [`WantFiles`](crate::clipboard::files::WantFiles).
        CLIPBOARD_WANT_FILES = 0x0a0a,
        /// Host to guest: [`Lend`](crate::clipboard::files::Lend).
        CLIPBOARD_LEND = 0x0a0b,
        /// From who lends: [`Roots`](crate::clipboard::files::Roots).
        CLIPBOARD_ROOTS = 0x0a0c,
        /// To who lends: [`Ask`](crate::clipboard::files::Ask).
        CLIPBOARD_ASK = 0x0a0d,
        /// From who lends: [`Node`](crate::clipboard::files::Node).
        CLIPBOARD_NODE = 0x0a0e,
        /// From who lends: [`Entries`](crate::clipboard::files::Entries).
        CLIPBOARD_ENTRIES = 0x0a0f,
        /// From who lends: the question's number, in eight bytes, and the bytes that were asked for.
        CLIPBOARD_BYTES = 0x0a10,
        /// From who lends: [`Refusal`](crate::clipboard::files::Refusal).
        CLIPBOARD_REFUSAL = 0x0a11,

        /// Host to guest: [`Display`](crate::display::Display).
        DISPLAY = 0x0b00,
        /// Guest to host: [`State`](crate::display::State).
        DISPLAY_STATE = 0x0b01,
    }
}

impl FrameId {
    /// The most payload bytes a frame of this id may have. Ids this release does not know get the ordinary cap, so
    /// that they can be skipped and answered.
    #[must_use]
    pub const fn max_len(self) -> u32 {
        match self {
            Self::CLIENT_HELLO | Self::SERVER_HELLO | Self::CLIENT_AUTH | Self::READY | Self::ANNOUNCE => {
                HANDSHAKE_LEN
            }
            Self::TICKET | Self::OPENED => HANDSHAKE_LEN,
            Self::BYE | Self::UNWANTED | Self::EXEC_DETACH | Self::CONTROL => 0,
            Self::CREDIT
            | Self::END
            | Self::EXEC_SIGNAL
            | Self::EXEC_RESIZE
            | Self::COPY_POSITION
            | Self::COPY_DONE
            | Self::TIME
            | Self::TIME_PROBE
            | Self::TIME_STAMP
            | Self::CLIPBOARD
            | Self::CLIPBOARD_FEED
            | Self::CLIPBOARD_TAKEN
            | Self::CLIPBOARD_FILES
            | Self::CLIPBOARD_WANT_FILES
            | Self::CLIPBOARD_LEND
            | Self::CLIPBOARD_REFUSAL => 64,
            Self::DATA | Self::CLIPBOARD_BYTES => DATA_LEN,
            Self::EXEC
            | Self::COPY_PULL
            | Self::PROCESSES
            | Self::REQUEST
            | Self::REPLY
            | Self::FILE_ENTRIES
            | Self::CLIPBOARD_ROOTS => LARGE_MESSAGE_LEN,
            _ => MESSAGE_LEN,
        }
    }
}

/// Why a frame's header is refused. The sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header claims more payload than its id may have.
    #[error("Frame {id} claims {len} bytes, its limit is {max}")]
    TooLong {
        /// The frame's id.
        id: FrameId,
        /// Bytes the header claims.
        len: u32,
        /// Bytes the id may have.
        max: u32,
    },
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub id: FrameId,
    /// The stream's number on stream frames, else zero.
    pub channel: u16,
    /// Payload bytes that follow.
    pub len: u32,
}

impl Header {
    /// Reads a header and holds its length against the id's cap.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [i0, i1, c0, c1, l0, l1, l2, l3] = bytes;
        let id = FrameId(u16::from_le_bytes([i0, i1]));
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let max = id.max_len();
        if len > max {
            return Err(FrameError::TooLong { id, len, max });
        }
        Ok(Self { id, channel: u16::from_le_bytes([c0, c1]), len })
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [i0, i1] = self.id.0.to_le_bytes();
        let [c0, c1] = self.channel.to_le_bytes();
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        [i0, i1, c0, c1, l0, l1, l2, l3]
    }
}

/// A whole frame, borrowed from the buffer it arrived in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the frame is.
    pub id: FrameId,
    /// The stream's number on stream frames, else zero.
    pub channel: u16,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Decodes the payload as `T`.
    ///
    /// # Errors
    /// [`CodecError`] where it is none.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        codec::decode(self.payload)
    }
}

/// Appends a frame whose payload is an encoded message.
pub fn put<T: Serialize>(id: FrameId, message: &T, out: &mut Vec<u8>) {
    put_on(id, 0, message, out);
}

/// As [`put`], on a stream.
pub fn put_on<T: Serialize>(id: FrameId, channel: u16, message: &T, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    codec::encode_into(message, out);
    finish(id, channel, start, out);
}

/// Appends a frame of raw bytes (or none).
///
/// # Panics
/// Where the bytes are over the id's cap: the caller splits, this is our own fault and not the peer's.
pub fn put_raw(id: FrameId, channel: u16, bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    out.extend_from_slice(bytes);
    finish(id, channel, start, out);
}

fn finish(id: FrameId, channel: u16, start: usize, out: &mut [u8]) {
    let len = u32::try_from(out.len() - start - HEADER_LEN).unwrap_or(u32::MAX);
    assert!(len <= id.max_len(), "frame {id} of {len} bytes is over its own limit");
    out[start..start + HEADER_LEN].copy_from_slice(&Header { id, channel, len }.to_bytes());
}

/// Bytes in, frames out: the receive buffer of one connection. It does no I/O; the rim reads into [`space`] and says
/// how much with [`filled`].
///
/// A data frame is taken in the pieces in which it arrives, each a [`Frame`] of its own with the same channel: a stream
/// counts bytes and not frames, and whoever waits for them has them as soon as they are there. Every other frame is
/// taken whole.
///
/// The buffer starts small, grows where it was filled, and is bounded by the ids' caps.
///
/// [`space`]: FrameBuffer::space
/// [`filled`]: FrameBuffer::filled
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The data frame under way: its channel, and the payload bytes that are still to be taken.
    piece: Option<(u16, usize)>,
    /// Whether the last read took all the room there was: the next one gets more.
    was_filled: bool,
}

impl FrameBuffer {
    /// Bytes to begin with. Most connections carry little.
    const START: usize = 4 * 1024;
    /// How much the buffer grows where it was filled: 4, 32, 256 KiB.
    const GROWTH: usize = 8;
    /// Bytes beyond which only a message that needs them makes it grow: a full data frame, and the next one's header.
    const MOST: usize = DATA_LEN as usize + 2 * HEADER_LEN;

    /// An empty buffer. It allocates at the first [`space`](Self::space).
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), start: 0, end: 0, piece: None, was_filled: false }
    }

    /// Room to read into: at least one byte, and the whole of what a message under way still lacks. While a long data
    /// frame is under way it ends behind the next header, so that in a stream one read brings one frame.
    pub fn space(&mut self) -> &mut [u8] {
        // What is left of the last read is the beginning of a frame: little, unless the frame is large and alone.
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let mut len = self.bytes.len().max(Self::START).max(self.end + self.lacking());
        if self.was_filled {
            len = len.max((self.bytes.len() * Self::GROWTH).min(Self::MOST));
            self.was_filled = false;
        }
        if self.bytes.len() < len {
            self.bytes.resize(len, 0);
        }
        let most = self.rest_of_data() + HEADER_LEN;
        let room = &mut self.bytes[self.end..];
        let len = if most * 2 > room.len() { most.min(room.len()) } else { room.len() };
        &mut room[..len]
    }

    /// The rim has read `n` bytes into [`space`](Self::space).
    pub fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
        self.was_filled = self.end == self.bytes.len();
    }

    /// Bytes that were read elsewhere: as if they had been read into [`space`](Self::space).
    pub fn push(&mut self, bytes: &[u8]) {
        self.space();
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(bytes);
        self.end = self.bytes.len();
    }

    /// The next whole frame, or the next piece of a data frame; `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`FrameError`]; the connection cannot go on.
    pub fn take(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if let Some((channel, left)) = self.piece {
            return Ok(if self.start == self.end { None } else { Some(self.take_piece(channel, left)) });
        }
        let Some(header) = self.header()? else { return Ok(None) };
        let len = header.len as usize;
        let have = self.end - self.start - HEADER_LEN;
        if header.id == FrameId::DATA && (have > 0 || len == 0) {
            self.start += HEADER_LEN;
            return Ok(Some(self.take_piece(header.channel, len)));
        }
        if have < len {
            return Ok(None);
        }
        let from = self.start + HEADER_LEN;
        self.start = from + len;
        Ok(Some(Frame { id: header.id, channel: header.channel, payload: &self.bytes[from..self.start] }))
    }

    fn take_piece(&mut self, channel: u16, left: usize) -> Frame<'_> {
        let from = self.start;
        let len = left.min(self.end - from);
        self.start += len;
        self.piece = if len < left { Some((channel, left - len)) } else { None };
        Frame { id: FrameId::DATA, channel, payload: &self.bytes[from..self.start] }
    }

    /// Whether [`take`](Self::take) has something to give.
    ///
    /// # Errors
    /// As there.
    pub fn is_ready(&self) -> Result<bool, FrameError> {
        if self.piece.is_some() {
            return Ok(self.start < self.end);
        }
        let Some(header) = self.header()? else { return Ok(false) };
        let have = self.end - self.start - HEADER_LEN;
        Ok(have >= header.len as usize || (header.id == FrameId::DATA && have > 0))
    }

    /// Whether no frame is unfinished. A connection that ends while one is ends inside it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end && self.piece.is_none()
    }

    /// Bytes that have been read and not yet taken: what a connection's next owner must be given, who may take one over
    /// between frames only.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        debug_assert!(self.piece.is_none(), "a connection changes hands inside a data frame");
        &self.bytes[self.start..self.end]
    }

    fn header(&self) -> Result<Option<Header>, FrameError> {
        match self.bytes[self.start..self.end].first_chunk::<HEADER_LEN>() {
            Some(bytes) => Header::parse(*bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Bytes that the data frame under way still lacks.
    fn rest_of_data(&self) -> usize {
        let have = self.end - self.start;
        match (self.piece, self.header()) {
            (Some((_, left)), _) => left.saturating_sub(have),
            (None, Ok(Some(Header { id: FrameId::DATA, len, .. }))) => {
                (HEADER_LEN + len as usize).saturating_sub(have)
            }
            _ => 0,
        }
    }

    /// Bytes without which nothing more can be taken. A refused header lacks none: `take` reports it.
    fn lacking(&self) -> usize {
        let have = self.end - self.start;
        if self.piece.is_some() {
            return usize::from(have == 0);
        }
        match self.header() {
            Ok(Some(Header { id: FrameId::DATA, len, .. })) => {
                (HEADER_LEN + len.min(1) as usize).saturating_sub(have)
            }
            Ok(Some(header)) => (HEADER_LEN + header.len as usize).saturating_sub(have),
            Ok(None) => HEADER_LEN - have,
            Err(_) => 0,
        }
        .max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_over_the_cap_is_refused_from_the_header_alone() {
        let mut buffer = FrameBuffer::new();
        let header = Header { id: FrameId::CLIENT_HELLO, channel: 0, len: HANDSHAKE_LEN + 1 };
        buffer.push(&header.to_bytes());
        assert_eq!(
            buffer.take(),
            Err(FrameError::TooLong {
                id: FrameId::CLIENT_HELLO,
                len: HANDSHAKE_LEN + 1,
                max: HANDSHAKE_LEN
            })
        );
    }

    #[test]
    fn an_unknown_id_is_a_frame_like_any_other() {
        let mut wire = Vec::new();
        put_raw(FrameId(0x7777), 3, b"later", &mut wire);
        let mut buffer = FrameBuffer::new();
        buffer.push(&wire);
        let frame = buffer.take().unwrap().unwrap();
        assert_eq!((frame.id.0, frame.channel, frame.payload), (0x7777, 3, &b"later"[..]));
        assert_eq!(std::format!("{}", frame.id), "FrameId(0x7777)");
    }

    #[test]
    fn a_data_frame_is_there_as_soon_as_its_first_byte_is() {
        let mut wire = Vec::new();
        put_raw(FrameId::DATA, 1, b"abc", &mut wire);
        let mut buffer = FrameBuffer::new();
        buffer.push(&wire[..HEADER_LEN]);
        assert!(buffer.take().unwrap().is_none() && !buffer.is_empty());
        for (byte, rest) in wire[HEADER_LEN..].chunks(1).zip([false, false, true]) {
            buffer.push(byte);
            assert_eq!(buffer.take().unwrap().unwrap().payload, byte);
            assert_eq!(buffer.is_empty(), rest);
        }
    }

    #[test]
    fn the_buffer_grows_for_a_stream_and_no_further() {
        let mut buffer = FrameBuffer::new();
        buffer.push(&Header { id: FrameId::DATA, channel: 0, len: DATA_LEN }.to_bytes());
        let mut left = DATA_LEN as usize;
        let mut spaces = Vec::new();
        while left > 0 {
            let n = buffer.space().len().min(left);
            spaces.push(n);
            buffer.filled(n);
            left -= buffer.take().unwrap().unwrap().payload.len();
        }
        assert!(spaces[0] <= FrameBuffer::START && spaces.len() <= 4, "{spaces:?}");
        assert!(buffer.bytes.len() <= FrameBuffer::MOST);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(lens in proptest::collection::vec(0usize..60_000, 1..8), cuts in proptest::collection::vec(1usize..90_000, 1..20)) {
            // Messages and streams in turn.
            let id = |n: usize| if n.is_multiple_of(2) { FrameId::DATA } else { FrameId::EXEC };
            let mut wire = Vec::new();
            for (n, len) in lens.iter().enumerate() {
                put_raw(id(n), u16::try_from(n).unwrap(), &std::vec![u8::try_from(n).unwrap(); *len], &mut wire);
            }
            let mut buffer = FrameBuffer::new();
            let (mut seen, mut pieces) = (std::vec![0; lens.len()], 0);
            let mut cuts = cuts.iter().cycle();
            while !wire.is_empty() {
                let space = buffer.space();
                let n = wire.len().min(*cuts.next().unwrap()).min(space.len());
                space[..n].copy_from_slice(&wire[..n]);
                wire.drain(..n);
                buffer.filled(n);
                while buffer.is_ready().unwrap() {
                    let frame = buffer.take().unwrap().unwrap();
                    let at = usize::from(frame.channel);
                    prop_assert!(frame.payload.iter().all(|b| u16::from(*b) == frame.channel));
                    prop_assert_eq!(frame.id, id(at));
                    prop_assert!(seen[at + 1..].iter().all(|len| *len == 0), "in order");
                    prop_assert!(at.is_multiple_of(2) || frame.payload.len() == lens[at], "a message comes whole");
                    seen[at] += frame.payload.len();
                    pieces += 1;
                }
                prop_assert!(buffer.take().unwrap().is_none());
            }
            prop_assert_eq!(seen, &lens[..]);
            prop_assert!(pieces >= lens.len() && buffer.is_empty());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut buffer = FrameBuffer::new();
            for chunk in bytes.chunks(7) {
                buffer.push(chunk);
                loop {
                    match buffer.take() { Ok(Some(_)) => (), Ok(None) => break, Err(_) => return Ok(()) }
                }
            }
        }
    }
}
