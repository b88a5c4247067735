//! Forward: one connection of the guest's network, or of its Unix sockets, carried to the host; either end may call.
//!
//! ```text
//! host                                     guest's worker
//!  | FORWARD_CONNECT tcp:localhost:80       |
//!  | DATA 0 …                               |
//!  |--------------------------------------->|  connect(2)
//!  |          FORWARD_OPEN, DATA 1 …        |
//!  |<-------------------------------------->|  END 0 and END 1, in any order, close it
//!
//!  | FORWARD_LISTEN tcp:127.0.0.1:8080      |
//!  |--------------------------------------->|  bind(2), listen(2)
//!  |          FORWARD_LISTENING             |
//!  |          FORWARD_INCOMING 7            |  accept(2)
//!  |<---------------------------------------|
//!  | on a new connection: FORWARD_ACCEPT 7  |
//!  |--------------------------------------->|
//!  |          FORWARD_OPEN, DATA 1 …        |
//!  | or on the listener's: FORWARD_REFUSE 7 |
//! ```
//! A half-closed socket is an [`END`](FrameId::END) with its count, so that nothing depends on the transport's own
//! half-close. A socket that broke is a [`FAILED`](FrameId::FAILED), and the other end resets its own. After both ends
//! the host says [`BYE`](FrameId::BYE); the guest closes when it has that, and the host after it.
//!
//! [`End`] is the rules of one end, [`Relay`] that with the bytes that wait for a socket.

mod relay;

pub use relay::Relay;

use serde::{Deserialize, Serialize};

use crate::codec::CodecError;
use crate::error::WireError;
use crate::frame::{self, Frame, FrameId, Header};
use crate::limits::PATH;
use crate::stream::{Receiver, Sender, StreamError};

/// The stream from host to guest.
pub const TO_GUEST: u16 = 0;
/// The stream from guest to host.
pub const TO_HOST: u16 = 1;

/// Where a forwarded connection ends in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// A TCP port, by host name or address as the guest resolves it.
    Tcp {
        /// Host name or address; for a listener, the address to bind.
        host: String,
        /// Port; zero lets the guest's kernel choose (listeners only).
        port: u16,
    },
    /// A Unix stream socket, with the user's rights.
    Unix {
        /// Its path; a relative one starts at the user's home.
        path: Vec<u8>,
    },
}

/// Why text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no address: write tcp:PORT, tcp:HOST:PORT, tcp:[IPV6]:PORT or unix:PATH")]
pub struct AddressError(pub String);

/// Bytes in a Unix socket's path, its terminating NUL not counted: `sun_path` of unix(7).
pub const SOCKET_PATH: usize = 107;

impl Address {
    /// Reads `tcp:22`, `tcp:db.local:5432`, `tcp:[::1]:80` or `unix:/run/x.sock`. A bare port, or `HOST:PORT`, is TCP.
    /// The text is bytes, as a Unix socket's path need not be UTF-8.
    ///
    /// # Errors
    /// [`AddressError`].
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, AddressError> {
        let text = text.as_ref();
        let error = || AddressError(printable(text));
        let address = match text.strip_prefix(b"unix:") {
            Some(path) => Self::Unix { path: path.into() },
            None => Self::tcp(std::str::from_utf8(text).map_err(|_| error())?).ok_or_else(error)?,
        };
        if address.is_sane() { Ok(address) } else { Err(error()) }
    }

    fn tcp(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').unwrap_or(("localhost", rest));
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        // `parse` alone would take a plus sign.
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        Some(Self::Tcp { host: host.to_owned(), port: port.parse().ok().filter(|_| digits)? })
    }

    /// Whether it is within its limits. The guest calls it on every request.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => {
                (1..=253).contains(&host.len()) && !host.contains(|c: char| c.is_control() || c == ' ')
            }
            Self::Unix { path } => (1..=PATH).contains(&path.len()) && !path.contains(&0),
        }
    }
}

/// Text of the other side's choosing as one line for people: no control character, no invalid UTF-8.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().flat_map(one_line).collect()
}

fn one_line(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => {
                write!(f, "tcp:[{}]:{port}", printable(host.as_bytes()))
            }
            Self::Tcp { host, port } => write!(f, "tcp:{}:{port}", printable(host.as_bytes())),
            Self::Unix { path } => write!(f, "unix:{}", printable(path)),
        }
    }
}

/// Opens a connection in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// The user; empty as in [`Exec::user`](crate::exec::Exec::user).
    pub user: String,
    /// Where to.
    pub to: Address,
}

/// Listens in the guest until this connection closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// The user; empty as in [`Exec::user`](crate::exec::Exec::user).
    pub user: String,
    /// On what.
    pub on: Address,
}

/// The guest listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// On what, with the port that the kernel chose.
    pub on: Address,
}

/// Somebody in the guest called. The host has
/// [`FORWARD_ACCEPT_MS`](crate::limits::FORWARD_ACCEPT_MS) to take the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// The call's number, random: whoever knows it may take the call.
    pub call: [u8; 16],
    /// Who called, for people.
    pub from: String,
}

/// Takes a call, on a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The listener's user.
    pub user: String,
    /// The call's number.
    pub call: [u8; 16],
}

/// Will not take a call, on the listener's connection: its caller is reset at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// The call's number.
    pub call: [u8; 16],
}

/// The guest's socket is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The address reached, for people and logs.
    pub peer: String,
}

/// How the peer broke the rules of a forward.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A stream's rules.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A message does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A frame that may not come now.
    #[error("Peer sent {id} on a forwarded connection that was {state}")]
    Unexpected {
        /// The frame.
        id: FrameId,
        /// Where the connection stood.
        state: &'static str,
    },
    /// The connection closed before both streams' ends.
    #[error("The forwarded connection was cut while it was {state}")]
    Cut {
        /// Where it stood.
        state: &'static str,
    },
}

/// What a forward's rim does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing; read on.
    Nothing,
    /// The far socket is connected (host only).
    Open(Open),
    /// Write these bytes to our socket, then say [`End::written`].
    Bytes(&'a [u8]),
    /// Shut our socket for writing once all before it is written.
    PeerEnded,
    /// The peer takes more: [`End::room`] has grown.
    Room,
    /// The peer wants no more: stop reading our socket.
    Unwanted,
    /// The far socket broke or never opened: reset ours.
    Failed(WireError),
    /// The host has all it wanted, both streams have ended: close (guest only).
    Bye,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    Failed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Open => "open",
            Self::Failed => "over",
        }
    }
}

/// One end of a forwarded connection. Both ends are alike but for who waits for `FORWARD_OPEN`.
#[derive(Debug)]
pub struct End {
    state: State,
    outbound: u16,
    inbound: u16,
    sender: Sender,
    receiver: Receiver,
}

impl End {
    /// The host's end, whose request has been sent. Bytes may be sent at once.
    #[must_use]
    pub const fn host() -> Self {
        Self::new(State::Opening, TO_GUEST, TO_HOST)
    }

    /// The guest's end, whose socket is connected: says so.
    pub fn guest(open: &Open, out: &mut Vec<u8>) -> Self {
        frame::put(FrameId::FORWARD_OPEN, open, out);
        Self::new(State::Open, TO_HOST, TO_GUEST)
    }

    const fn new(state: State, outbound: u16, inbound: u16) -> Self {
        Self { state, outbound, inbound, sender: Sender::new(outbound), receiver: Receiver::new(inbound) }
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// [`ForwardError`]: the peer broke the protocol; the connection cannot go on.
    pub fn receive<'a>(&mut self, frame: Frame<'a>) -> Result<Step<'a>, ForwardError> {
        match (frame.id, self.state) {
            (FrameId::FORWARD_OPEN, State::Opening) => {
                self.state = State::Open;
                Ok(Step::Open(frame.decode()?))
            }
            (FrameId::DATA, State::Open) => {
                on_stream(frame, self.inbound)?;
                let wanted = self.receiver.data(frame.payload.len())?;
                Ok(if wanted { Step::Bytes(frame.payload) } else { Step::Nothing })
            }
            (FrameId::END, State::Open) => {
                on_stream(frame, self.inbound)?;
                self.receiver.end(frame.decode()?)?;
                Ok(Step::PeerEnded)
            }
            (FrameId::CREDIT, State::Opening | State::Open) => {
                on_stream(frame, self.outbound)?;
                self.sender.granted(frame.decode()?)?;
                Ok(Step::Room)
            }
            (FrameId::UNWANTED, State::Opening | State::Open) => {
                on_stream(frame, self.outbound)?;
                self.sender.refused();
                Ok(Step::Unwanted)
            }
            (FrameId::FAILED, State::Opening | State::Open) => {
                self.state = State::Failed;
                Ok(Step::Failed(frame.decode()?))
            }
            (FrameId::BYE, State::Open) if self.outbound == TO_HOST && self.is_done() => Ok(Step::Bye),
            (FrameId::UNKNOWN, _) => Ok(Step::Nothing),
            (id, state) => Err(ForwardError::Unexpected { id, state: state.name() }),
        }
    }

    /// Bytes that may be sent in one frame now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.sender.room()
    }

    /// The header of a frame of `len` bytes; the rim sends the bytes behind it.
    pub fn data(&mut self, len: usize) -> Header {
        self.sender.data(len)
    }

    /// Our socket was shut for reading by its peer.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        self.sender.end(out);
    }

    /// Our socket took `len` bytes.
    pub fn written(&mut self, len: usize, out: &mut Vec<u8>) {
        self.receiver.taken(len, out);
    }

    /// Our socket takes no more.
    pub fn refuse(&mut self, out: &mut Vec<u8>) {
        self.receiver.refuse(out);
    }

    /// Our socket broke, or could not be opened.
    pub fn failed(&mut self, error: &WireError, out: &mut Vec<u8>) {
        self.state = State::Failed;
        frame::put(FrameId::FAILED, error, out);
    }

    /// Whether nothing more can come or go.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Failed) || (self.receiver.is_ended() && !self.sender.is_open())
    }

    /// The connection closed.
    ///
    /// # Errors
    /// [`ForwardError::Cut`] unless both ends had been said.
    pub const fn closed(&self) -> Result<(), ForwardError> {
        if self.is_done() { Ok(()) } else { Err(ForwardError::Cut { state: self.state.name() }) }
    }
}

fn on_stream(frame: Frame<'_>, expected: u16) -> Result<(), StreamError> {
    if frame.channel == expected {
        Ok(())
    } else {
        Err(StreamError::NoSuchStream { id: frame.id, channel: frame.channel })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::frame::FrameBuffer;

    fn first<T>(wire: &[u8], read: impl FnOnce(Frame<'_>) -> T) -> T {
        let mut buffer = FrameBuffer::new();
        buffer.push(wire);
        read(buffer.take().unwrap().unwrap())
    }

    #[test]
    fn addresses_read_as_people_write_them() {
        let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
        assert_eq!(Address::parse("tcp:22"), Ok(tcp("localhost", 22)));
        assert_eq!(Address::parse("8080"), Ok(tcp("localhost", 8080)));
        assert_eq!(Address::parse("db.local:5432"), Ok(tcp("db.local", 5432)));
        assert_eq!(Address::parse("tcp:[::1]:80"), Ok(tcp("::1", 80)));
        assert_eq!(Address::parse("unix:/run/x"), Ok(Address::Unix { path: b"/run/x".to_vec() }));
        for bad in ["", "tcp:", "tcp:70000", "tcp:+80", "tcp:a b:1", "::1:80", "unix:", "tcp:[::1:80", "http"]
        {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Address::parse("tcp:[::1]:80").unwrap().to_string(), "tcp:[::1]:80");
        let raw = Address::parse(b"unix:/a\xff\x1b[2J").unwrap();
        assert_eq!(raw, Address::Unix { path: b"/a\xff\x1b[2J".to_vec() });
        assert_eq!(raw.to_string(), "unix:/a\u{fffd}\\u{1b}[2J", "what people read has no escape in it");
    }

    #[test]
    fn each_direction_ends_by_itself_and_both_close_it() {
        let (mut to_host, mut to_guest) = (Vec::new(), Vec::new());
        let mut guest = End::guest(&Open { peer: "here".into() }, &mut to_host);
        let mut host = End::host();
        let step = first(&to_host, |frame| matches!(host.receive(frame).unwrap(), Step::Open(_)));
        assert!(step);
        host.end(&mut to_guest);
        first(&to_guest, |frame| assert_eq!(guest.receive(frame).unwrap(), Step::PeerEnded));
        assert!(!guest.is_done() && guest.room() > 0, "the other direction goes on");
        to_host.clear();
        guest.end(&mut to_host);
        first(&to_host, |frame| assert_eq!(host.receive(frame).unwrap(), Step::PeerEnded));
        assert!(host.is_done() && guest.is_done());
    }

    #[test]
    fn a_cut_is_not_an_end() {
        assert!(matches!(End::host().closed(), Err(ForwardError::Cut { state: "opening" })));
        let guest = End::guest(&Open { peer: String::new() }, &mut Vec::new());
        assert!(matches!(guest.closed(), Err(ForwardError::Cut { state: "open" })));
    }

    #[test]
    fn a_refused_call_is_told_and_the_peers_stream_is_not_ours() {
        let (mut host, mut wire) = (End::host(), Vec::new());
        let error = WireError::new(ErrorKind::UNREACHABLE, "Connection refused");
        frame::put(FrameId::FAILED, &error, &mut wire);
        first(&wire, |frame| assert_eq!(host.receive(frame).unwrap(), Step::Failed(error)));
        let mut guest = End::guest(&Open { peer: String::new() }, &mut Vec::new());
        wire.clear();
        frame::put_raw(FrameId::DATA, TO_HOST, b"echo", &mut wire);
        first(&wire, |frame| assert!(matches!(guest.receive(frame), Err(ForwardError::Stream(_)))));
    }
}
