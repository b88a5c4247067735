//! Carrying an archive's frames over a connection that may be cut and replaced.
//!
//! [`send()`] and [`receive()`] run on the caller's thread and do blocking I/O on the connection; the tree is read or
//! written on a second thread. When the connection is lost, a [`Relink`] finds another and says where the other side
//! stands; the sender goes on with the frames that it kept. Nothing else knows of cuts.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameError, Header};
use hospes_protocol::limits::HEADER_LEN;
use hospes_protocol::stream::StreamError;
use hospes_protocol::{codec::CodecError, frame::FrameId};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

mod receive;
mod send;

pub use receive::{Receive, receive};
pub use send::{Send, send};

/// How long the other side may take to go once it has been told why.
const GOODBYE: Duration = Duration::from_secs(10);

/// Bytes it may still send meanwhile: what its credit allows, and more.
const GOODBYE_BYTES: usize = 8 * 1024 * 1024;

/// An open connection whose request has been said.
#[derive(Debug)]
pub struct Link {
    stream: Arc<File>,
    /// Bytes that were read from it and belong to the copy.
    rest: Vec<u8>,
    taken: usize,
}

impl Link {
    /// A blocking socket, and what was read from it beyond what its reader wanted.
    #[must_use]
    pub fn new(socket: OwnedFd, rest: Vec<u8>) -> Self {
        Self { stream: Arc::new(socket.into()), rest, taken: 0 }
    }

    /// Says whole frames.
    ///
    /// # Errors
    /// The system's.
    pub fn say(&mut self, frames: &[u8]) -> io::Result<()> {
        (&*self.stream).write_all(frames)
    }

    /// A handle that can end the connection from another thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.stream))
    }

    /// Says why the copy ends, and stays until the other side has gone: to close with bytes unread resets a connection,
    /// and the reset may overtake the words.
    pub fn fail(mut self, error: &WireError) {
        let mut out = Vec::new();
        frame::put(FrameId::FAILED, error, &mut out);
        if self.say(&out).is_err() {
            return;
        }
        let _ = set_socket_timeout(&self.stream, Timeout::Recv, Some(GOODBYE));
        let (mut left, mut sink) = (GOODBYE_BYTES, vec![0; 64 * 1024]);
        while left > 0 {
            match self.read(&mut sink) {
                Ok(n) => left = left.saturating_sub(n),
                Err(_) => return,
            }
        }
    }

    /// Hears one frame, which must fit `payload` together with the next header.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` where the connection closed; `InvalidData` where the header is refused.
    pub fn hear(&mut self, payload: &mut Vec<u8>) -> io::Result<Header> {
        let mut bytes = [0; HEADER_LEN];
        self.fill(&mut bytes)?;
        let header =
            Header::parse(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let len = header.len as usize;
        // The next header often comes with this payload, in one read; what is read of it is kept.
        if payload.len() < len + HEADER_LEN {
            payload.resize(len + HEADER_LEN, 0);
        }
        let mut have = self.drain_rest(&mut payload[..len]);
        while have < len {
            have += self.read(&mut payload[have..len + HEADER_LEN])?;
        }
        if have > len {
            self.rest.clear();
            self.rest.extend_from_slice(&payload[len..have]);
            self.taken = 0;
        }
        Ok(header)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut have = self.drain_rest(bytes);
        while have < bytes.len() {
            have += self.read(&mut bytes[have..])?;
        }
        Ok(())
    }

    fn drain_rest(&mut self, bytes: &mut [u8]) -> usize {
        let n = bytes.len().min(self.rest.len() - self.taken);
        bytes[..n].copy_from_slice(&self.rest[self.taken..self.taken + n]);
        self.taken += n;
        n
    }

    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&*self.stream).read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                other => return other,
            }
        }
    }
}

/// Ends a connection from another thread than its own.
#[derive(Debug, Clone)]
pub struct Handle(Arc<File>);

impl Handle {
    /// Whoever waits on the connection finds it lost.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// Finds another connection when one is lost.
pub trait Relink {
    /// Waits for one, and exchanges positions over it: `taken` archive bytes have been taken on this side, zero where it
    /// sends. Gives the connection and the bytes that the other side has taken; none where there is no hope any more.
    fn relink(&mut self, taken: u64) -> Option<(Link, u64)>;
}

/// No second connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRelink;

impl Relink for NoRelink {
    fn relink(&mut self, _: u64) -> Option<(Link, u64)> {
        None
    }
}

/// Asks a copy to stop, from another thread: it does so at its next frame, and tells the other side.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The flag itself, for a signal handler.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a copy ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The connection was lost, and no other came.
    #[error("The connection was lost after {bytes} bytes of the copy and could not be taken up again")]
    Cut {
        /// Archive bytes that had gone over.
        bytes: u64,
    },
    /// The other side gave up, with these words.
    #[error(transparent)]
    Peer(WireError),
    /// This side gave up, with these words; the other side was told.
    #[error(transparent)]
    Ours(WireError),
    /// The other side broke a stream's rules.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The other side sent a frame of a length that its kind may not have.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other side sent a message that does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The other side sent a frame that may not come now.
    #[error("Peer sent {id} during a copy")]
    Unexpected {
        /// The frame.
        id: FrameId,
    },
    /// The other side claims to have taken what was not sent, or part of a frame.
    #[error("Peer claims to have taken {taken} bytes of the copy, {kept} to {sent} can be sent again")]
    Position {
        /// Bytes claimed.
        taken: u64,
        /// Where the kept frames begin.
        kept: u64,
        /// Bytes sent.
        sent: u64,
    },
    /// A thread of the copy ended with a panic: our fault.
    #[error("A thread of the copy failed")]
    Thread,
}

impl TransferError {
    /// The error as the other side is told it, and as it is shown.
    #[must_use]
    pub fn to_wire(&self) -> WireError {
        match self {
            Self::Peer(error) | Self::Ours(error) => error.clone(),
            Self::Cut { .. } => WireError::new(ErrorKind::UNREACHABLE, self),
            Self::Thread => WireError::new(ErrorKind::OTHER, self),
            _ => WireError::protocol(self),
        }
    }

    /// Whether the other side is to be told: it does not know, and there is a connection.
    const fn is_news(&self) -> bool {
        !matches!(self, Self::Peer(_) | Self::Cut { .. })
    }
}

/// What went wrong on one connection: the connection itself, or the copy.
enum Trouble {
    Lost,
    Fatal(TransferError),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.downcast::<FrameError>() {
            Ok(error) => Self::Fatal(error.into()),
            Err(_) => Self::Lost,
        }
    }
}

macro_rules! fatal {
    ($($error:ty),+) => { $(
        impl From<$error> for Trouble {
            fn from(error: $error) -> Self {
                Self::Fatal(error.into())
            }
        }
    )+ };
}

fatal!(TransferError, StreamError, CodecError);

fn cancelled() -> TransferError {
    TransferError::Ours(WireError::new(ErrorKind::CANCELLED, "The copy was stopped"))
}

#[cfg(test)]
mod tests;
