//! One connection's frames: a receive buffer, a send queue, and as few system calls as they need.
//!
//! The socket stays in blocking mode and each call says whether it may wait, so that no flag is ever set and taken
//! back. What is queued goes out together, with the bytes of a data frame behind it in the same call.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Instant;

use hospes_protocol::error::WireError;
use hospes_protocol::frame::{Frame, FrameBuffer, FrameError, FrameId, Header};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, sendmsg};

use crate::endpoint::{Stream, wait_readable, wait_writable};
use crate::sys::SEND;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Reading failed.
    #[error("The connection to the guest was lost")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("The guest takes no more on this connection")]
    Write(#[source] io::Error),
    /// The guest closed it where more had to come.
    #[error("The guest closed the connection{}", if *inside_frame { " in the middle of a message" } else { "" })]
    Closed {
        /// Whether it stopped inside a frame.
        inside_frame: bool,
    },
    /// Nothing came in time.
    #[error("The guest did not answer in time")]
    TimedOut,
    /// The guest broke the protocol.
    #[error("The guest broke the protocol: {0}")]
    Frame(#[from] FrameError),
}

/// What a read that does not wait found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// Bytes: look for frames.
    Bytes,
    /// Nothing yet.
    Nothing,
    /// The peer closed the connection.
    End,
}

/// A connection to a guest.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    pub(crate) input: FrameBuffer,
    pub(crate) output: Vec<u8>,
    /// Bytes at the start of `output` that are sent.
    sent: usize,
    deadline: Option<Instant>,
}

impl Connection {
    /// A connection over a fresh stream.
    #[must_use]
    pub fn new(mut stream: Stream) -> Self {
        let mut input = FrameBuffer::new();
        let early = std::mem::take(&mut stream.early);
        if !early.is_empty() {
            input.push(&early);
        }
        Self { stream, input, output: Vec::with_capacity(1024), sent: 0, deadline: None }
    }

    /// Until when [`flush`](Self::flush) and [`frame`](Self::frame) may wait; for ever without.
    pub const fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Where frames are put that go out with the next flush.
    pub const fn queue(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Whether queued bytes wait to be sent.
    #[must_use]
    pub const fn has_queued(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Drops what is queued: the peer takes no more.
    pub fn discard_queued(&mut self) {
        self.output.clear();
        self.sent = 0;
    }

    /// Sends all that is queued, waiting as long as that takes.
    ///
    /// # Errors
    /// [`ConnectionError::Write`], [`ConnectionError::TimedOut`].
    pub fn flush(&mut self) -> Result<(), ConnectionError> {
        while self.has_queued() {
            if !self.send(&[])? {
                wait_writable(self.stream.as_fd(), self.deadline).map_err(write_failed)?;
            }
        }
        Ok(())
    }

    /// Sends what is queued as far as the socket takes it now; true once all is sent.
    ///
    /// # Errors
    /// [`ConnectionError::Write`].
    pub fn try_flush(&mut self) -> Result<bool, ConnectionError> {
        while self.has_queued() {
            if !self.send(&[])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends a data frame behind what is queued, as far as the socket takes it now; the rest is queued. The bytes are
    /// copied only in that case.
    ///
    /// # Errors
    /// [`ConnectionError::Write`].
    pub fn try_send_data(&mut self, header: Header, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.output.extend_from_slice(&header.to_bytes());
        self.send(bytes).map(drop)
    }

    /// Sends a data frame behind what is queued, waiting as long as that takes.
    ///
    /// # Errors
    /// [`ConnectionError::Write`], [`ConnectionError::TimedOut`].
    pub fn send_data(&mut self, header: Header, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.try_send_data(header, bytes)?;
        self.flush()
    }

    /// The next frame, waiting for it.
    ///
    /// # Errors
    /// [`ConnectionError`]; an end is [`ConnectionError::Closed`].
    pub fn frame(&mut self) -> Result<Frame<'_>, ConnectionError> {
        while !self.input.is_ready()? {
            if self.deadline.is_some() {
                wait_readable(self.stream.as_fd(), self.deadline).map_err(read_failed)?;
            }
            match self.read(MsgFlags::empty())? {
                Got::Bytes | Got::Nothing => (),
                Got::End => return Err(ConnectionError::Closed { inside_frame: !self.input.is_empty() }),
            }
        }
        // Ready was just seen; the order is the borrow checker's.
        self.input.take()?.ok_or(ConnectionError::Closed { inside_frame: true })
    }

    /// The next frame if it is of `id`; what the guest failed with if it is `FAILED`.
    ///
    /// # Errors
    /// [`ExpectError`].
    pub fn expect(&mut self, id: FrameId) -> Result<Frame<'_>, ExpectError> {
        let frame = self.frame()?;
        match frame.id {
            found if found == id => Ok(frame),
            FrameId::FAILED => Err(ExpectError::Failed(decode(&frame)?)),
            found => Err(ExpectError::Other { found, expected: id }),
        }
    }

    /// A frame that has arrived whole, or none. Never waits and never reads.
    ///
    /// # Errors
    /// [`ConnectionError::Frame`].
    pub fn take(&mut self) -> Result<Option<Frame<'_>>, ConnectionError> {
        Ok(self.input.take()?)
    }

    /// Reads what there is now.
    ///
    /// # Errors
    /// [`ConnectionError::Read`].
    pub fn try_read(&mut self) -> Result<Got, ConnectionError> {
        self.read(MsgFlags::MSG_DONTWAIT)
    }

    /// Gives the stream back, with the bytes that were read and not taken.
    #[must_use]
    pub fn into_parts(self) -> (Stream, FrameBuffer) {
        (self.stream, self.input)
    }

    fn read(&mut self, flags: MsgFlags) -> Result<Got, ConnectionError> {
        loop {
            return match recv(self.stream.as_fd().as_raw_fd(), self.input.space(), flags) {
                Ok(0) => Ok(Got::End),
                Ok(n) => {
                    self.input.filled(n);
                    Ok(Got::Bytes)
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Ok(Got::Nothing),
                // A peer that died with unread bytes resets: to us that is its end.
                Err(Errno::ECONNRESET) => Ok(Got::End),
                Err(error) => Err(ConnectionError::Read(error.into())),
            };
        }
    }

    /// One call for the queue and `bytes` behind it; false where the socket took nothing. What is left of both is
    /// queued.
    fn send(&mut self, bytes: &[u8]) -> Result<bool, ConnectionError> {
        let queued = self.output.len() - self.sent;
        let parts = [IoSlice::new(&self.output[self.sent..]), IoSlice::new(bytes)];
        let n = loop {
            match sendmsg::<()>(self.stream.as_fd().as_raw_fd(), &parts, &[], SEND, None) {
                Ok(n) => break n,
                Err(Errno::EINTR) => (),
                Err(Errno::EAGAIN) => break 0,
                Err(error) => return Err(ConnectionError::Write(error.into())),
            }
        };
        if n >= queued {
            self.output.clear();
            self.sent = 0;
            self.output.extend_from_slice(&bytes[n - queued..]);
        } else {
            self.sent += n;
            self.output.extend_from_slice(bytes);
        }
        Ok(n > 0)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Why the expected frame did not come.
#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    /// The connection cannot go on.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The guest answered with an error of its own.
    #[error("{}", crate::printable::line(&.0.message))]
    Failed(WireError),
    /// Another frame came.
    #[error("The guest broke the protocol: it sent {found} where {expected} had to come")]
    Other {
        /// What came.
        found: FrameId,
        /// What had to.
        expected: FrameId,
    },
    /// The frame's payload is not what its id promises.
    #[error("The guest broke the protocol: {0}")]
    Codec(#[from] hospes_protocol::codec::CodecError),
}

fn decode(frame: &Frame<'_>) -> Result<WireError, ExpectError> {
    Ok(frame.decode()?)
}

fn read_failed(error: io::Error) -> ConnectionError {
    if error.kind() == io::ErrorKind::TimedOut {
        ConnectionError::TimedOut
    } else {
        ConnectionError::Read(error)
    }
}

fn write_failed(error: io::Error) -> ConnectionError {
    if error.kind() == io::ErrorKind::TimedOut {
        ConnectionError::TimedOut
    } else {
        ConnectionError::Write(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::frame;
    use hospes_protocol::limits::DATA_LEN;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(Stream::new(ours.into())), theirs)
    }

    #[test]
    fn queue_and_data_go_out_in_order_however_little_the_socket_takes() {
        let (mut connection, mut peer) = pair();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let bytes = vec![7u8; DATA_LEN as usize];
        let mut expected = Vec::new();
        for channel in 0..20 {
            frame::put(FrameId::CREDIT, &5u32, connection.queue());
            frame::put(FrameId::CREDIT, &5u32, &mut expected);
            let header = Header { id: FrameId::DATA, channel, len: DATA_LEN };
            connection.send_data(header, &bytes).unwrap();
            frame::put_raw(FrameId::DATA, channel, &bytes, &mut expected);
        }
        drop(connection);
        assert!(reader.join().unwrap() == expected);
    }

    #[test]
    fn a_socket_that_takes_nothing_does_not_hold_us() {
        let (mut connection, _peer) = pair();
        let header = Header { id: FrameId::DATA, channel: 0, len: DATA_LEN };
        for _ in 0..8 {
            connection.try_send_data(header, &[0; DATA_LEN as usize]).unwrap();
        }
        assert!(connection.has_queued() && !connection.try_flush().unwrap());
        connection.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
        assert!(matches!(connection.flush(), Err(ConnectionError::TimedOut)));
    }

    #[test]
    fn a_peer_that_stops_inside_a_frame_or_claims_too_much_is_told() {
        let (mut connection, mut peer) = pair();
        peer.write_all(&[1, 2, 3]).unwrap();
        drop(peer);
        assert!(matches!(connection.frame(), Err(ConnectionError::Closed { inside_frame: true })));

        let (mut connection, mut peer) = pair();
        peer.write_all(&[0x02, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap();
        assert!(matches!(connection.frame(), Err(ConnectionError::Frame(FrameError::TooLong { .. }))));

        let (mut connection, _peer) = pair();
        connection.set_deadline(Some(Instant::now() + Duration::from_millis(20)));
        assert!(matches!(connection.frame(), Err(ConnectionError::TimedOut)));
    }
}
