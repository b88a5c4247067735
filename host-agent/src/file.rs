//! File verbs from the host: one request on a connection, its bytes or parts, and the reply that says it is done.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use hospes_protocol::codec::CodecError;
use hospes_protocol::error::WireError;
use hospes_protocol::file::{Entries, Entry, FileReply, FileRequest, READ, Verb, WRITTEN};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::DATA_LEN;
use hospes_protocol::stream::{Receiver, Sender, StreamError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::client::{Client, ClientError};
use crate::connection::{Connection, ConnectionError, Got};

/// Why a file verb failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// No connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The connection broke: nothing that was not confirmed can be counted on.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The guest refused, in its own words.
    #[error("{}", crate::printable::line(&.0.message))]
    Guest(WireError),
    /// The guest broke the protocol.
    #[error("The guest broke the protocol: {0}")]
    Protocol(String),
    /// A directory has more than is kept. The guest's, or its lie.
    #[error("The guest lists more than the {} MiB of names that are sorted here", .max >> 20)]
    Listing {
        /// Bytes that are kept.
        max: usize,
    },
    /// Our own input or output.
    #[error("Cannot {act}")]
    Local {
        /// What was tried.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl From<CodecError> for FileError {
    fn from(error: CodecError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<StreamError> for FileError {
    fn from(error: StreamError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// Does a verb that carries no bytes and no list.
///
/// # Errors
/// [`FileError`].
pub fn simple(client: &Client, user: &str, verb: Verb) -> Result<FileReply, FileError> {
    Exchange::open(client, user, verb)?.reply(|_, _| Ok(()))
}

/// Lists a directory; `each` gets its entries as they come, in no order. How many there were.
///
/// # Errors
/// [`FileError`].
pub fn list(
    client: &Client,
    user: &str,
    path: Vec<u8>,
    mut each: impl FnMut(Entry) -> Result<(), FileError>,
) -> Result<u64, FileError> {
    let mut seen = 0;
    let reply = Exchange::open(client, user, Verb::List { path })?.reply(|frame, _| match frame.id {
        FrameId::FILE_ENTRIES => {
            let Entries(entries) = frame.decode()?;
            for entry in entries {
                // A name is one component: one that is not was made to lead somewhere else.
                if entry.name.is_empty()
                    || entry.name.contains(&b'/')
                    || matches!(&entry.name[..], b"." | b"..")
                {
                    return Err(FileError::Protocol("it listed a name that is none".to_owned()));
                }
                seen += 1;
                each(entry)?;
            }
            Ok(())
        }
        id => Err(unexpected(id)),
    })?;
    match reply {
        FileReply::Count(count) if count == seen => Ok(count),
        FileReply::Count(count) => {
            Err(FileError::Protocol(format!("it listed {seen} entries and counted {count}")))
        }
        reply => Err(wrong(&reply)),
    }
}

/// Reads a file; `take` gets its bytes in order. How many there were.
///
/// # Errors
/// [`FileError`]. What `take` has had by then is the file's beginning.
pub fn read(
    client: &Client,
    user: &str,
    verb: Verb,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<u64, FileError> {
    let mut receiver = Receiver::new(READ);
    let reply = Exchange::open(client, user, verb)?.reply(|frame, out| match frame.id {
        FrameId::DATA if frame.channel == READ => {
            receiver.data(frame.payload.len())?;
            take(frame.payload).map_err(|source| FileError::Local { act: "write the output", source })?;
            receiver.taken(frame.payload.len(), out);
            Ok(())
        }
        FrameId::END if frame.channel == READ => Ok(receiver.end(frame.decode()?)?),
        id => Err(unexpected(id)),
    })?;
    match reply {
        FileReply::Count(count) if receiver.is_ended() && count == receiver.total() => Ok(count),
        FileReply::Count(_) => Err(FileError::Protocol("it lost count of the file's bytes".to_owned())),
        reply => Err(wrong(&reply)),
    }
}

/// Writes what `input` has, to its end, to a file. How many bytes there were.
///
/// # Errors
/// [`FileError`]. Unless it was an append, the file is then as it was.
pub fn write(client: &Client, user: &str, verb: Verb, input: BorrowedFd<'_>) -> Result<u64, FileError> {
    let mut exchange = Exchange::open(client, user, verb)?;
    let mut sender = Sender::new(WRITTEN);
    let mut buffer = vec![0; DATA_LEN as usize];
    while sender.is_open() {
        exchange.take_grants(&mut sender)?;
        let room = sender.room();
        let (connection, ready) = wait(&exchange.connection, (room > 0).then_some(input))?;
        if connection {
            exchange.fill()?;
        }
        if !ready {
            continue;
        }
        match nix::unistd::read(input, &mut buffer[..room]) {
            Ok(0) => sender.end(&mut exchange.connection.output),
            Ok(len) => {
                let header = sender.data(len);
                let sent = exchange.connection.send_data(header, &buffer[..len]);
                exchange.unless_told(sent)?;
            }
            Err(Errno::EINTR | Errno::EAGAIN) => (),
            Err(error) => return Err(FileError::Local { act: "read the input", source: error.into() }),
        }
    }
    let total = sender.total();
    let reply = exchange.reply(|frame, _| match frame.id {
        FrameId::CREDIT | FrameId::UNWANTED => Ok(()),
        id => Err(unexpected(id)),
    })?;
    match reply {
        FileReply::Count(count) if count == total => Ok(count),
        FileReply::Count(count) => Err(FileError::Protocol(format!("it wrote {count} of {total} bytes"))),
        reply => Err(wrong(&reply)),
    }
}

/// A request under way.
struct Exchange {
    connection: Connection,
}

impl Exchange {
    fn open(client: &Client, user: &str, verb: Verb) -> Result<Self, FileError> {
        let mut operation = Vec::new();
        frame::put(FrameId::FILE, &FileRequest { user: user.to_owned(), verb }, &mut operation);
        Ok(Self { connection: client.open(&operation)? })
    }

    /// Hands every frame to `other` until the reply comes, and says goodbye.
    fn reply(
        mut self,
        mut other: impl FnMut(frame::Frame<'_>, &mut Vec<u8>) -> Result<(), FileError>,
    ) -> Result<FileReply, FileError> {
        loop {
            while let Some(frame) = self.connection.input.take().map_err(ConnectionError::from)? {
                match frame.id {
                    FrameId::FILE_REPLY => {
                        let reply = frame.decode()?;
                        frame::put_raw(FrameId::BYE, 0, &[], &mut self.connection.output);
                        // The guest has told all: whether it hears that we heard it changes nothing.
                        let _ = self.connection.try_flush();
                        return Ok(reply);
                    }
                    FrameId::FAILED => return Err(FileError::Guest(frame.decode()?)),
                    FrameId::UNKNOWN => (),
                    _ => other(frame, &mut self.connection.output)?,
                }
            }
            let sent = self.connection.flush();
            self.unless_told(sent)?;
            wait(&self.connection, None)?;
            self.fill()?;
        }
    }

    /// Takes what the guest grants while we send.
    fn take_grants(&mut self, sender: &mut Sender) -> Result<(), FileError> {
        while let Some(frame) = self.connection.input.take().map_err(ConnectionError::from)? {
            match frame.id {
                FrameId::CREDIT if frame.channel == WRITTEN => sender.granted(frame.decode()?)?,
                FrameId::FAILED => return Err(FileError::Guest(frame.decode()?)),
                FrameId::UNKNOWN => (),
                id => return Err(unexpected(id)),
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), FileError> {
        match self.connection.try_read()? {
            Got::End => Err(ConnectionError::Closed { inside_frame: false }.into()),
            Got::Bytes | Got::Nothing => Ok(()),
        }
    }

    /// A guest that takes no more may have said why: that is what counts.
    fn unless_told(&mut self, sent: Result<(), ConnectionError>) -> Result<(), FileError> {
        let Err(error) = sent else { return Ok(()) };
        self.connection.discard_queued();
        while let Ok(Got::Bytes) = self.connection.try_read() {
            while let Some(frame) = self.connection.input.take().map_err(ConnectionError::from)? {
                if frame.id == FrameId::FAILED {
                    return Err(FileError::Guest(frame.decode()?));
                }
            }
        }
        Err(error.into())
    }
}

/// Waits for the guest, or for our input. Which of the two.
fn wait(connection: &Connection, input: Option<BorrowedFd<'_>>) -> Result<(bool, bool), FileError> {
    let mut fds = vec![PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    fds.extend(input.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => (),
            Err(error) => {
                return Err(FileError::Local { act: "wait for the guest", source: error.into() });
            }
            Ok(_) => {
                let ready = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(true));
                return Ok((ready(0), ready(1)));
            }
        }
    }
}

fn unexpected(id: FrameId) -> FileError {
    FileError::Protocol(format!("it sent {id} where none had to come"))
}

/// A reply that answers another request.
#[must_use]
pub fn wrong(reply: &FileReply) -> FileError {
    let word = match reply {
        FileReply::Done => "done",
        FileReply::Stat(_) => "a description",
        FileReply::Path(_) => "a path",
        FileReply::Count(_) => "a count",
    };
    FileError::Protocol(format!("it answered with {word} where something else was asked"))
}
