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
//! It follows a full handshake on the same connection, never a ticket: its session's tickets die with it. A single
//! [`Request`] may also come alone on a connection of its own, after a ticket or a handshake, where [`Ask::Subscribe`]
//! makes no sense and is refused.
//!
//! A request that this release cannot decode is answered all the same: its number stands first ([`number`]), and the
//! answer is `UNSUPPORTED`.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError};
use crate::error::WireError;
use crate::freeze::{Freeze, FreezeReply, Thaw, ThawReply, Trim, TrimReply};
use crate::info::Info;
use crate::power::{Power, PowerReply};
use crate::variable::Variable;

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
    /// Every variable, secrets without their values.
    VariableList,
    /// One variable. A secret is not the host's to read back.
    VariableGet {
        /// Its name.
        name: String,
    },
    /// Sets a variable.
    VariableSet(Variable),
    /// Removes a variable.
    VariableRemove {
        /// Its name.
        name: String,
    },
    /// Shutdown, reboot, halt or suspend.
    Power(Power),
    /// Holds the file systems still. Alone on a connection, as are the two that follow.
    Freeze(Freeze),
    /// Lets them go.
    Thaw(Thaw),
    /// Tells the disks what is free.
    Trim(Trim),
}

/// The number of a request, whether or not the rest of it decodes.
///
/// # Errors
/// [`CodecError`] where not even the number does.
pub fn number(payload: &[u8]) -> Result<u64, CodecError> {
    codec::decode_first(payload)
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
    /// To [`Ask::VariableList`].
    Variables(Vec<Variable>),
    /// To [`Ask::VariableGet`].
    Variable(Variable),
    /// To [`Ask::Power`].
    Power(PowerReply),
    /// To [`Ask::Freeze`].
    Freeze(FreezeReply),
    /// To [`Ask::Thaw`].
    Thaw(ThawReply),
    /// To [`Ask::Trim`].
    Trim(TrimReply),
}

/// Something changed in the guest. A variant's place is its number on the wire: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The guest information as it is now.
    Info(Box<Info>),
    /// The guest is about to stop; why, in one word: `poweroff`, `reboot`, `halt`, `suspend`, `upgrade`.
    Stopping(String),
    /// A variable changed or went; its name.
    Variable(String),
    /// The guest came back from suspend.
    Resumed,
    /// Whose desktop the clipboard's connections would now reach; none where nobody's: no desktop, one that is locked, a
    /// greeter. Connections to the one before are over.
    Desktop(Option<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_request_from_the_future_can_be_read() {
        let mut payload = Vec::new();
        codec::encode_into(&Request { number: 77, ask: Ask::Ping }, &mut payload);
        // A variant that does not exist yet.
        *payload.last_mut().unwrap() = 200;
        assert!(codec::decode::<Request>(&payload).is_err());
        assert_eq!(number(&payload).unwrap(), 77);
    }
}
