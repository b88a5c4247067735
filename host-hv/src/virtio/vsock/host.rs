//! What lies on the other side of the device, as the device sees it.

use std::io;

use thiserror::Error;

use super::{Key, StreamId};
use crate::io::{Endpoint, PipeEnd};

/// A stream the host gave to a guest that asked.
pub enum Dial {
    /// Connected.
    Ready(Endpoint),
    /// A pipe whose other end has not accepted yet.
    Pending(PipeEnd),
}

/// Why a guest's request is answered with a reset.
#[derive(Debug, Error)]
pub enum DialError {
    /// No such destination, or the guest may not reach it.
    #[error("There is nothing at cid {cid} for this guest")]
    Unreachable {
        /// The destination.
        cid: u64,
    },
    /// The listener has as many connections waiting as it wants: try again.
    #[error("The listener at {path} is busy")]
    Busy {
        /// The socket tried.
        path: String,
    },
    /// Nobody listens.
    #[error("Nobody on the host listens at {path}")]
    Refused {
        /// The socket tried.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// How a client on the host learns what became of its wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// By a line: `OK <port>`, or `ERR <reason>` before the close.
    Line,
    /// By nothing but the stream itself.
    None,
}

/// The other side.
pub trait Host {
    /// Reaches the destination of a guest's request.
    fn dial(&mut self, key: &Key) -> Result<Dial, DialError>;

    /// Reports the readiness of `endpoint` under `id` from now on.
    fn watch(&mut self, id: StreamId, endpoint: &mut Endpoint) -> io::Result<()>;
}
