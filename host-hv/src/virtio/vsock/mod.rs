//! The vsock device: streams between a guest's `AF_VSOCK` and Unix sockets on the host, or another guest.
//!
//! # A primer
//!
//! Guest and device exchange packets on two rings; a packet is a header ([`packet`]) and, for data, a payload. A
//! connection is named by cid and port of both sides.
//!
//! **Handshake.** `REQUEST` is answered by `RESPONSE`, or by `RST` when nobody listens. A client on the host that has
//! asked for a guest's port hears `OK` after the guest's `RESPONSE`, never before. No answer within
//! [`HANDSHAKE_TIMEOUT`] is a refusal.
//!
//! **Credit.** Every header carries the sender's buffer size and how many bytes its reader has taken. Neither side
//! sends more than the other has room for. Ours: what the guest sends goes straight to the Unix socket, and only what
//! would block is kept, in a buffer of exactly the size we advertised; a guest that sends more is reset. We send
//! `CREDIT_UPDATE` after half a window, at once when asked, and `CREDIT_REQUEST` when the guest's window keeps the
//! host's bytes waiting.
//!
//! **Shutdown.** `SHUTDOWN` says which directions its sender has ended. Host's end of writing becomes
//! `SHUTDOWN(SEND)` after its last byte; the guest's becomes the end of writing on the Unix socket after its last byte.
//! A guest that has ended both is answered by `RST`: its port is free from then on, while bytes it sent before still
//! drain to the host. A host that is gone is told as `SHUTDOWN(SEND|RECEIVE)`; the guest answers with `RST` once its
//! program has read everything, or we send `RST` after [`CLOSE_TIMEOUT`].
//!
//! **Nothing is lost, nothing grows.** Control packets wait as flags of their connection, at most one of each kind, and
//! resets without a connection in a bounded set, until the guest offers receive buffers. Connections take turns on the
//! receive ring with a byte budget each.
//!
//! # Where it is
//!
//! [`spec`] constants; [`packet`] header; [`credit`] and [`connection`] the pure state machine; [`table`] who is
//! connected and whose turn it is; [`deadline`] and [`redial`] what waits for the clock; `rx` and `tx` the two rings; [`device`] ties them together;
//! [`host`] how the device reaches the other side: [`uds`] sockets, [`sibling`] another guest; [`lobby`] how that side reaches it.

pub mod connection;
pub mod credit;
pub mod deadline;
pub mod device;
pub mod host;
pub mod lobby;
pub mod packet;
pub mod redial;
mod rx;
pub mod sibling;
pub mod spec;
pub mod table;
mod tx;
pub mod uds;

use std::time::Duration;

pub use device::{ConnectError, Limits, Readiness, Vsock};
pub use host::{Dial, DialError, Greeting, Host};
pub use table::{Key, StreamId};

/// How long a `REQUEST` may stay unanswered; Linux' own connect gives up after as long.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a guest may take to answer a shutdown of both directions; Linux waits as long in the other direction.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(8);
