//! Forward from the host: carries connections between this machine's sockets and the guest's.
//!
//! * [`spec`]: what `-L` and `-R` say.
//! * [`pump`]: carries one connection.
//! * [`local`]: this machine's sockets, and our own stdin and stdout as one.
//! * [`listener`]: this machine's listening sockets.

pub mod listener;
pub mod local;
pub mod pump;
pub mod spec;

use hospes_protocol::forward::{Address, Connect};
use hospes_protocol::frame::{self, FrameId};

use crate::client::{Client, ClientError};
use crate::connection::Connection;

/// Asks the guest to call `to`. The answer comes with the connection's frames.
///
/// # Errors
/// [`ClientError`].
pub fn call(client: &Client, user: &str, to: &Address) -> Result<Connection, ClientError> {
    let mut operation = Vec::new();
    frame::put(FrameId::FORWARD_CONNECT, &Connect { user: user.to_owned(), to: to.clone() }, &mut operation);
    client.open(&operation)
}
