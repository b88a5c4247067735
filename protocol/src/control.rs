//! The control session: numbered requests, their replies in any order, and events.
//!
//! ```text
//! host                                   guest
//!  | CONTROL                              |
//!  | REQUEST 1 Info      REQUEST 2 Ping   |
//!  |------------------------------------->|
//!  |   REPLY 2 Pong      REPLY 1 Info     |
//!  |   EVENT …  (once subscribed)         |
//!  |<-------------------------------------|
//! ```
//! It follows a full handshake on the same connection, never a ticket: its session's tickets die with it.

use serde::{Deserialize, Serialize};

use crate::error::WireError;
use crate::info::Info;

/// A request and its number, which the reply repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, unique among its unanswered requests.
    pub number: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What a host may ask. A variant's place is its number on the wire: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Are you there?
    Ping,
    /// What are you?
    Info,
    /// Tell me of changes, as [`Event`]s, from now on.
    Subscribe,
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's number.
    pub number: u64,
    /// The answer.
    pub answer: Result<Answer, WireError>,
}

/// An answer. A variant's place is its number on the wire: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Ping`].
    Pong,
    /// To [`Ask::Info`].
    Info(Box<Info>),
    /// To requests that have no more to say.
    Done,
}

/// Something changed in the guest. A variant's place is its number on the wire: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The guest information as it is now.
    Info(Box<Info>),
    /// The guest is about to stop; why, in one word: `poweroff`, `reboot`, `halt`, `suspend`, `upgrade`.
    Stopping(String),
}
