//! Copy, from the host's side: one connection, and another when it is cut.
//!
//! [`hospes_tree`] reads and writes trees and carries the frames; here are the requests, the way back after a cut, and
//! tar archives as the other thing that can be copied from and to.

use std::thread;
use std::time::{Duration, Instant};

use hospes_protocol::copy::{CopyId, Done, Position, Pull, Push, RequestError, Resume};
use hospes_protocol::error::WireError;
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::LARGE_MESSAGE_LEN;
use hospes_tree::read::Produce;
use hospes_tree::transfer::{Cancel, Link, Receive, Relink, Send, TransferError, receive, send};
use hospes_tree::write::Consume;
use hospes_tree::{Problems, Summary};

use crate::client::{Client, ClientError, Greeting};
use crate::connection::Connection;

mod retar;
mod untar;

pub use retar::TarWriter;
pub use untar::TarReader;

/// How long a guest whose connection was cut is sought.
const SEEK: Duration = Duration::from_secs(30);
/// Between tries: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Why a copy failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// No connection could be opened.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The copy broke off.
    #[error("{}", crate::printable::line(&.0.to_string()))]
    Transfer(#[source] TransferError),
    /// The connection was lost, and why no other came.
    #[error("The connection was lost, and the copy could not be taken up again: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The request passes a limit.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The guest's report does not agree with what was sent.
    #[error("The guest reports {reported} files of {sent} and no problem with any")]
    Report {
        /// Files that the guest says it has.
        reported: u64,
        /// Files that it was sent.
        sent: u64,
    },
}

/// What a copy did.
#[derive(Debug, Default)]
pub struct Copied {
    /// The receiver's counts.
    pub done: Done,
    /// What this machine could not read, or write.
    pub ours: Problems,
    /// What the guest could not write.
    pub theirs: Problems,
    /// The first handshake's news.
    pub greeting: Option<Greeting>,
}

/// Sends what `producer` makes.
///
/// # Errors
/// [`CopyError`].
pub fn push(
    client: &Client,
    push: &Push,
    producer: Box<dyn Produce>,
    cancel: &Cancel,
) -> Result<Copied, CopyError> {
    push.check()?;
    let mut operation = Vec::new();
    frame::put(FrameId::COPY_PUSH, push, &mut operation);
    let (connection, greeting) = client.open_told(&operation)?;
    let mut relink = Again::new(client, &push.user, push.id, cancel);
    let sent = send(link(connection), &mut relink, producer, Send::Report, cancel);
    let (read, reported) = sent.map_err(|error| relink.explain(error))?;
    let reported = reported.unwrap_or_default();
    if reported.problems.count() == 0 && reported.done.files != read.done.files {
        return Err(CopyError::Report { reported: reported.done.files, sent: read.done.files });
    }
    Ok(Copied { done: reported.done, ours: read.problems, theirs: reported.problems, greeting })
}

/// Receives what the guest sends into `consumer`.
///
/// # Errors
/// [`CopyError`].
pub fn pull(
    client: &Client,
    pull: &Pull,
    consumer: Box<dyn Consume>,
    cancel: &Cancel,
) -> Result<Copied, CopyError> {
    pull.check()?;
    let bytes: usize = pull.sources.iter().chain(&pull.exclude).map(|path| path.len() + 9).sum();
    if bytes + 1024 > LARGE_MESSAGE_LEN as usize {
        let max = LARGE_MESSAGE_LEN as usize;
        return Err(RequestError::TooMany { what: "bytes of paths", count: bytes, max }.into());
    }
    let mut operation = Vec::new();
    frame::put(FrameId::COPY_PULL, pull, &mut operation);
    let (connection, greeting) = client.open_told(&operation)?;
    let mut relink = Again::new(client, &pull.user, pull.id, cancel);
    let received = receive(link(connection), &mut relink, consumer, Receive::Goodbye, cancel);
    let Summary { done, problems } = received.map_err(|error| relink.explain(error))?;
    Ok(Copied { done, ours: problems, theirs: Problems::default(), greeting })
}

fn link(connection: Connection) -> Link {
    let (stream, input) = connection.into_parts();
    Link::new(stream.into_fd(), input.rest().to_vec())
}

/// The way back to a guest that still has the copy.
struct Again<'a> {
    client: &'a Client,
    user: &'a str,
    id: CopyId,
    cancel: &'a Cancel,
    /// Why there was none.
    reason: Option<String>,
}

impl<'a> Again<'a> {
    const fn new(client: &'a Client, user: &'a str, id: CopyId, cancel: &'a Cancel) -> Self {
        Self { client, user, id, cancel, reason: None }
    }

    fn resume(&self, taken: u64) -> Result<(Link, u64), ClientError> {
        let mut operation = Vec::new();
        let resume = Resume { user: self.user.to_owned(), id: self.id, taken };
        frame::put(FrameId::COPY_RESUME, &resume, &mut operation);
        let mut connection = self.client.open(&operation)?;
        connection.set_deadline(Some(Instant::now() + SEEK));
        let position: Position = connection.expect(FrameId::COPY_POSITION)?.decode()?;
        connection.set_deadline(None);
        Ok((link(connection), position.taken))
    }

    fn explain(&mut self, error: TransferError) -> CopyError {
        match (error, self.reason.take()) {
            (TransferError::Cut { .. }, Some(reason)) => CopyError::Lost { reason },
            (error, _) => CopyError::Transfer(error),
        }
    }
}

impl Relink for Again<'_> {
    fn relink(&mut self, taken: u64) -> Option<(Link, u64)> {
        let until = Instant::now() + SEEK;
        let mut pause = PAUSE.0;
        while !self.cancel.is_cancelled() {
            let error = match self.resume(taken) {
                Ok(found) => return Some(found),
                Err(error) => error,
            };
            self.reason = Some(error.to_string());
            if !error.may_pass() || Instant::now() + pause > until {
                return None;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE.1);
        }
        None
    }
}

impl CopyError {
    /// What the guest refused with, where it did.
    #[must_use]
    pub const fn refusal(&self) -> Option<&WireError> {
        match self {
            Self::Transfer(TransferError::Peer(error)) => Some(error),
            _ => None,
        }
    }
}
