//! A connection that the daemon handed over: frames in, frames and bulk bytes out, and a close that loses nothing.
//!
//! Whoever serves one owns it and does all waiting in one place:
//!
//! ```text
//! loop {
//!     while let Some(frame) = connection.take()? { … append answers to connection.out() … }
//!     if connection.is_clear() { read into connection.bulk(), then connection.send_bulk(header, n) }
//!     connection.try_flush()?;
//!     select! { connection.readable() => connection.try_fill()?, connection.writable(), if !flushed => … }
//! }
//! connection.finish().await
//! ```
//! What is appended to [`out`](Connection::out) waits for [`try_flush`](Connection::try_flush), so that frames which
//! are ready together leave in one packet. Bulk bytes are read into the connection's own buffer and go out from there
//! behind their header in one call, uncopied; frames that come up meanwhile queue behind them.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::Duration;

use hospes_protocol::error::WireError;
use hospes_protocol::frame::{self, Frame, FrameBuffer, FrameError, FrameId, Header};
use hospes_protocol::limits::{DATA_LEN, HEADER_LEN};
use tokio::time;

use crate::sys::descriptor::{Descriptor, Moved};
use crate::sys::vsock;

/// How long the host may take to say `BYE`, or to close, once it has been told the end.
const GOODBYE: Duration = Duration::from_secs(10);
/// Bytes it may still send meanwhile: what its streams' credit allows, and more.
const GOODBYE_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of bulk buffer to begin with. Most commands say little.
const BULK_START: usize = 4 * 1024;
/// How much it grows where it was filled: 4, 64, 256 KiB.
const BULK_GROWTH: usize = 16;
/// Bytes in one read or frame that show a stream to be long.
const LONG: usize = 64 * 1024;
/// Bytes of unsent frames at which the host is no longer listened to: it asks and does not read the answers.
const OUT_MAX: usize = 1024 * 1024;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The host closed it, or the kernel says that it is gone.
    #[error("The connection was lost")]
    Lost,
    /// The host broke the framing.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    socket: Descriptor,
    frames: FrameBuffer,
    /// Frames to send first, from `sent` on.
    head: Vec<u8>,
    sent: usize,
    /// Bulk bytes behind them, `bulk_range` of the buffer.
    bulk: Vec<u8>,
    bulk_range: std::ops::Range<usize>,
    /// Whether the buffer was filled the last time.
    bulk_full: bool,
    /// Frames behind the bulk bytes.
    tail: Vec<u8>,
    /// Whether the socket was made to hold more.
    is_wide: bool,
}

impl Connection {
    /// The connection behind a handoff's descriptor: `rest` was read from it already, `preamble` goes out before our
    /// first frame.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn new(fd: OwnedFd, rest: &[u8], preamble: Vec<u8>) -> io::Result<Self> {
        let mut frames = FrameBuffer::new();
        frames.push(rest);
        Ok(Self {
            socket: Descriptor::socket(fd)?,
            frames,
            head: preamble,
            sent: 0,
            bulk: Vec::new(),
            bulk_range: 0..0,
            bulk_full: false,
            tail: Vec::new(),
            is_wide: false,
        })
    }

    /// Where frames are appended, behind all that waits.
    pub fn out(&mut self) -> &mut Vec<u8> {
        if self.bulk_range.is_empty() { &mut self.head } else { &mut self.tail }
    }

    /// The next frame that has arrived whole.
    ///
    /// # Errors
    /// [`FrameError`]: the host's fault, the connection cannot go on.
    pub fn take(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        self.frames.take()
    }

    /// [`take`](Self::take), with where to append the answer.
    ///
    /// # Errors
    /// As there.
    pub fn take_with_out(&mut self) -> Result<(Option<Frame<'_>>, &mut Vec<u8>), FrameError> {
        let out = if self.bulk_range.is_empty() { &mut self.head } else { &mut self.tail };
        Ok((self.frames.take()?, out))
    }

    /// Whether bulk bytes may be queued: none are under way, and the host reads what it is sent.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.bulk_range.is_empty() && self.head.len() - self.sent < DATA_LEN as usize
    }

    /// Whether everything is sent.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.bulk_range.is_empty() && self.head.len() == self.sent
    }

    /// The bulk buffer, of at most `max` bytes and never empty; only while [`is_clear`](Self::is_clear). It starts
    /// small and has grown where it was filled before.
    pub fn bulk(&mut self, max: usize) -> &mut [u8] {
        debug_assert!(self.bulk_range.is_empty(), "bulk bytes are under way");
        if self.bulk.is_empty() {
            self.bulk.resize(BULK_START, 0);
        } else if self.bulk_full && self.bulk.len() < DATA_LEN as usize {
            self.bulk.resize((self.bulk.len() * BULK_GROWTH).min(DATA_LEN as usize), 0);
        }
        self.bulk_full = false;
        let len = self.bulk.len().min(max.max(1));
        &mut self.bulk[..len]
    }

    /// As [`bulk`](Self::bulk), the buffer itself, for a thread that fills it. It comes back by
    /// [`return_bulk`](Self::return_bulk).
    pub fn lend_bulk(&mut self, max: usize) -> (Vec<u8>, usize) {
        let len = self.bulk(max).len();
        (std::mem::take(&mut self.bulk), len)
    }

    /// Takes a lent buffer back, before [`send_bulk`](Self::send_bulk).
    pub fn return_bulk(&mut self, bulk: Vec<u8>) {
        self.bulk = bulk;
    }

    /// Sends the first `header.len` bytes of the bulk buffer behind their header, and makes the buffer larger where
    /// they filled it. True where they did.
    pub fn send_bulk(&mut self, header: Header) -> bool {
        self.head.extend_from_slice(&header.to_bytes());
        self.bulk_range = 0..header.len as usize;
        self.bulk_full = self.bulk_range.len() == self.bulk.len();
        self.widen(self.bulk_range.len());
        self.bulk_full
    }

    /// Sends what waits, as far as the host takes it now. True where everything is sent.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`].
    pub fn try_flush(&mut self) -> Result<bool, ConnectionError> {
        while !self.is_flushed() {
            let parts = [
                IoSlice::new(&self.head[self.sent..]),
                IoSlice::new(&self.bulk[self.bulk_range.clone()]),
                IoSlice::new(&self.tail),
            ];
            match self.socket.send(&parts) {
                Ok(Moved::Bytes(n)) => self.was_sent(n),
                Ok(Moved::NotReady) => return Ok(false),
                Err(_) => return Err(ConnectionError::Lost),
            }
        }
        Ok(true)
    }

    fn was_sent(&mut self, n: usize) {
        let of_head = n.min(self.head.len() - self.sent);
        let of_bulk = (n - of_head).min(self.bulk_range.len());
        let of_tail = n - of_head - of_bulk;
        self.sent += of_head;
        self.bulk_range.start += of_bulk;
        if !self.bulk_range.is_empty() || self.sent < self.head.len() {
            return;
        }
        self.bulk_range = 0..0;
        self.head.clear();
        self.sent = of_tail;
        std::mem::swap(&mut self.head, &mut self.tail);
        if self.sent == self.head.len() {
            self.head.clear();
            self.sent = 0;
        }
    }

    /// Sends everything that waits.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`].
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.try_flush()? {
            self.writable().await?;
        }
        Ok(())
    }

    /// Waits until more can be sent.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`].
    pub async fn writable(&self) -> Result<(), ConnectionError> {
        self.socket.writable().await.map_err(|_| ConnectionError::Lost)
    }

    /// Waits until the host has sent something, or is gone. For ever while it asks and does not read the answers.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`].
    pub async fn readable(&self) -> Result<(), ConnectionError> {
        if self.head.len() - self.sent + self.tail.len() > OUT_MAX {
            return std::future::pending().await;
        }
        self.socket.readable().await.map_err(|_| ConnectionError::Lost)
    }

    /// Reads what the host has sent, for [`take`](Self::take). False where there is nothing now.
    ///
    /// # Errors
    /// [`ConnectionError::Lost`].
    pub fn try_fill(&mut self) -> Result<bool, ConnectionError> {
        match self.socket.receive(self.frames.space()) {
            Ok(Moved::Bytes(n)) if n > 0 => {
                self.frames.filled(n);
                self.widen(n);
                Ok(true)
            }
            Ok(Moved::NotReady) => Ok(false),
            Ok(Moved::Bytes(_)) | Err(_) => Err(ConnectionError::Lost),
        }
    }

    /// Makes the socket hold more, once it carries a long stream.
    fn widen(&mut self, moved: usize) {
        if moved >= LONG && !std::mem::replace(&mut self.is_wide, true) {
            vsock::widen(&self.socket);
        }
    }

    /// Waits for the next whole frame, and hands it to `with`. For connections that do one thing at a time.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub async fn next<T>(
        &mut self,
        mut with: impl FnMut(Frame<'_>, &mut Vec<u8>) -> T,
    ) -> Result<T, ConnectionError> {
        loop {
            let (frame, out) = self.take_with_out()?;
            if let Some(frame) = frame {
                return Ok(with(frame, out));
            }
            self.readable().await?;
            self.try_fill()?;
        }
    }

    /// Ends a connection whose last word to the host is in [`out`](Self::out): sends all that waits, and keeps the
    /// connection until the host says `BYE` or closes, because closing with unread bytes resets the connection and
    /// would take the last word from the host. True where the host said `BYE`: it has all.
    pub async fn finish(mut self) -> bool {
        let goodbye = async {
            self.flush().await?;
            let mut budget = GOODBYE_BYTES;
            loop {
                let (id, len) = self.next(|frame, _| (frame.id, frame.payload.len() + HEADER_LEN)).await?;
                if id == FrameId::BYE || len > budget {
                    return Ok::<_, ConnectionError>(id == FrameId::BYE);
                }
                budget -= len;
            }
        };
        matches!(time::timeout(GOODBYE, goodbye).await, Ok(Ok(true)))
    }

    /// Gives the socket up, for an operation that does its own I/O: with what was read and not taken, and what waits to
    /// be sent.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Vec<u8>, Vec<u8>) {
        let mut unsent = self.head;
        unsent.drain(..self.sent);
        unsent.extend_from_slice(&self.bulk[self.bulk_range]);
        unsent.extend_from_slice(&self.tail);
        (self.socket.into_inner(), self.frames.rest().to_vec(), unsent)
    }

    /// Ends the connection with an error.
    pub async fn refuse(mut self, error: &WireError) {
        frame::put(FrameId::FAILED, error, self.out());
        self.finish().await;
    }
}
