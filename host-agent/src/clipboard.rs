//! A guest's clipboard from a command: what can be pasted there, its bytes, and bytes to be pasted there. No agent is
//! needed, and none of this shares this machine's own clipboard.

use std::io::{Read, Write};

use hospes_protocol::clipboard::{
    Channel, ClipboardError, Fetch, Offer, Ready, Said, Selection, Set, Share, Side, Sink, SinkStep, Source,
    SourceStep,
};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::DATA_LEN;

use crate::client::{Client, ClientError};
use crate::connection::{Connection, ConnectionError};

/// Why it did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The guest.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// This machine's side of it.
    #[error("Cannot {act}: {source}")]
    Local {
        /// What was tried.
        act: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl From<ConnectionError> for TransferError {
    fn from(error: ConnectionError) -> Self {
        Self::Client(error.into())
    }
}

impl From<ClipboardError> for TransferError {
    fn from(error: ClipboardError) -> Self {
        Self::Client(ClientError::Protocol(error.to_string()))
    }
}

/// A guest's desktop, listened to.
#[derive(Debug)]
pub struct Listening {
    connection: Connection,
    channel: Channel,
    /// What the guest's desktop is.
    pub ready: Ready,
}

impl Listening {
    /// Begins to listen. What can be pasted now are the first offers.
    ///
    /// # Errors
    /// [`ClientError`]; where no desktop is in front, or the policy forbids it, [`ClientError::Refused`].
    pub fn open(client: &Client) -> Result<Self, ClientError> {
        let mut operation = Vec::new();
        frame::put(FrameId::CLIPBOARD, &Share { to_guest: false, to_host: true }, &mut operation);
        let connection = client.open(&operation)?;
        let empty = Ready {
            user: String::new(),
            back_end: String::new(),
            selections: Vec::new(),
            share: Share::default(),
        };
        let mut listening = Self { connection, channel: Channel::host(), ready: empty };
        match listening.said()? {
            Said::Ready(ready) => listening.ready = ready,
            _ => return Err(ClientError::Protocol("it made an offer before it was ready".to_owned())),
        }
        if !listening.ready.share.to_host {
            let message = "The guest's policy does not let its clipboard out";
            let error = WireError::new(ErrorKind::FORBIDDEN, message)
                .hint("In the guest: [clipboard] to-host in /etc/hospes/tools.toml");
            return Err(ClientError::Refused(error));
        }
        Ok(listening)
    }

    /// The next offer, waiting for it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn offer(&mut self) -> Result<Offer, ClientError> {
        loop {
            if let Said::Offer(offer) = self.said()? {
                return Ok(offer);
            }
        }
    }

    fn said(&mut self) -> Result<Said, ClientError> {
        loop {
            let frame = self.connection.frame()?;
            match self.channel.receive(frame) {
                Ok(Said::Nothing) => (),
                Ok(Said::Failed(error)) => return Err(ClientError::Refused(error)),
                Ok(said) => return Ok(said),
                Err(error) => return Err(ClientError::Protocol(error.to_string())),
            }
        }
    }
}

/// Writes to `out` what the guest offers.
///
/// # Errors
/// [`TransferError`].
pub fn paste(
    client: &Client,
    selection: Selection,
    serial: u64,
    kind: &str,
    out: &mut impl Write,
) -> Result<u64, TransferError> {
    let mut operation = Vec::new();
    frame::put(FrameId::CLIPBOARD_FETCH, &Fetch { selection, serial, kind: kind.to_owned() }, &mut operation);
    let mut connection = client.open(&operation)?;
    let mut sink = Sink::new(Side::Host);
    loop {
        let mut answer = Vec::new();
        match sink.receive(connection.frame()?)? {
            SinkStep::Bytes(bytes) => {
                out.write_all(bytes).map_err(|source| TransferError::Local { act: "write", source })?;
                sink.taken(bytes.len(), &mut answer);
            }
            SinkStep::Ended => {
                sink.done(&mut answer);
                connection.queue().extend_from_slice(&answer);
                connection.flush()?;
                out.flush().map_err(|source| TransferError::Local { act: "write", source })?;
                return Ok(sink.total());
            }
            SinkStep::Failed(error) => return Err(ClientError::Refused(error).into()),
            SinkStep::Nothing | SinkStep::Bye => (),
        }
        connection.queue().extend_from_slice(&answer);
        connection.flush()?;
    }
}

/// Leaves all that `input` has with the guest's desktop, to be pasted there.
///
/// # Errors
/// [`TransferError`].
pub fn copy(client: &Client, set: &Set, input: &mut impl Read) -> Result<u64, TransferError> {
    let mut operation = Vec::new();
    frame::put(FrameId::CLIPBOARD_SET, set, &mut operation);
    let mut connection = client.open(&operation)?;
    let mut source = Source::new(Side::Host);
    let mut chunk = vec![0; DATA_LEN as usize];
    let mut ended = false;
    loop {
        let room = source.room();
        if ended || room == 0 {
            match source.receive(connection.frame()?)? {
                SourceStep::Taken => {
                    frame::put_raw(FrameId::BYE, 0, &[], connection.queue());
                    connection.flush()?;
                    return Ok(source.total());
                }
                SourceStep::Refused(error) => {
                    let gone = || WireError::new(ErrorKind::CANCELLED, "The guest wants no more of it");
                    return Err(ClientError::Refused(error.unwrap_or_else(gone)).into());
                }
                SourceStep::Nothing | SourceStep::Room => continue,
            }
        }
        let n =
            input.read(&mut chunk[..room]).map_err(|source| TransferError::Local { act: "read", source })?;
        if n == 0 {
            ended = true;
            source.end(connection.queue());
            connection.flush()?;
        } else {
            let header = source.data(n);
            if let Err(error) = connection.send_data(header, &chunk[..n]) {
                return Err(last_words(&mut connection, &mut source).unwrap_or_else(|| error.into()));
            }
        }
    }
}

/// What a guest that closed its end had said before.
fn last_words(connection: &mut Connection, source: &mut Source) -> Option<TransferError> {
    loop {
        match source.receive(connection.frame().ok()?).ok()? {
            SourceStep::Refused(error) => return Some(ClientError::Refused(error?).into()),
            SourceStep::Nothing | SourceStep::Room | SourceStep::Taken => (),
        }
    }
}
