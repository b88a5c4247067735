//! One request and its answer, alone on a connection of their own: with the agent's ticket one round trip.

use std::time::Instant;

use hospes_protocol::control::{Answer, Ask, Reply, Request};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};

use crate::client::{Client, ClientError};
use crate::connection::{Connection, ExpectError};

/// Asks, and waits for the answer until `deadline`. The connection comes back with the answer: it ends with the guest.
///
/// # Errors
/// [`ClientError`]; the guest's refusal is [`ClientError::Refused`].
pub fn request(
    client: &Client,
    ask: Ask,
    deadline: Option<Instant>,
) -> Result<(Answer, Connection), ClientError> {
    let mut operation = Vec::new();
    frame::put(FrameId::REQUEST, &Request { number: 1, ask }, &mut operation);
    let mut connection = client.open(&operation)?;
    connection.set_deadline(deadline);
    let reply = match connection.expect(FrameId::REPLY) {
        Ok(frame) => frame.decode::<Reply>()?,
        Err(ExpectError::Other { found: FrameId::UNKNOWN, .. }) => {
            let error = WireError::new(ErrorKind::UNSUPPORTED, "The guest tools do not know this request");
            return Err(ClientError::Refused(error.hint("Upgrade hospes-tools in the guest")));
        }
        Err(error) => return Err(error.into()),
    };
    if reply.number != 1 {
        return Err(ClientError::Protocol(format!("it answered request {}", reply.number)));
    }
    Ok((reply.answer.map_err(ClientError::Refused)?, connection))
}

/// What a guest says that answers another question.
#[must_use]
pub fn mismatch() -> ClientError {
    ClientError::Protocol("it answered another question".to_owned())
}
