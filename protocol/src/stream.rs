//! One direction of bytes inside a connection: credit, counts, and an end that is said and never inferred.
//!
//! The sender may have [`INITIAL_CREDIT`] bytes under way; the receiver grants more as its own reader takes them, so a
//! stream nobody reads blocks itself and no other. The closing [`END`](crate::frame::FrameId::END) carries the bytes in
//! all, and the receiver holds its own count against it: a stream cut short cannot look like one that ended.

use crate::codec::CodecError;
use crate::frame::{self, FrameId, Header};
use crate::limits::{DATA_LEN, INITIAL_CREDIT, MAX_CREDIT};

/// How the peer broke a stream's rules.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// More bytes than it had credit for.
    #[error("Peer sent {len} bytes on stream {channel} with credit for {credit}")]
    Overrun {
        /// The stream.
        channel: u16,
        /// Bytes in the frame.
        len: u64,
        /// Bytes it might have sent.
        credit: u64,
    },
    /// Bytes or a second end after the end.
    #[error("Peer sent more on stream {channel} after its end")]
    AfterEnd {
        /// The stream.
        channel: u16,
    },
    /// The counts differ: something was lost or invented on the way.
    #[error("Stream {channel} ended after {received} bytes, its sender counted {claimed}")]
    Count {
        /// The stream.
        channel: u16,
        /// Bytes that arrived.
        received: u64,
        /// Bytes the sender says it sent.
        claimed: u64,
    },
    /// The peer granted more credit than fits in 64 bits.
    #[error("Peer granted too much credit on stream {channel}")]
    Grant {
        /// The stream.
        channel: u16,
    },
    /// A stream frame for a stream that this connection does not have in that direction.
    #[error("Peer sent {id} on stream {channel}, which is not open that way")]
    NoSuchStream {
        /// The frame's id.
        id: FrameId,
        /// The stream.
        channel: u16,
    },
    /// A credit or end whose payload does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct Sender {
    channel: u16,
    sent: u64,
    credit: u64,
    ended: bool,
    unwanted: bool,
}

impl Sender {
    /// A stream on which nothing has been sent.
    #[must_use]
    pub const fn new(channel: u16) -> Self {
        Self { channel, sent: 0, credit: INITIAL_CREDIT as u64, ended: false, unwanted: false }
    }

    /// Bytes that may be sent in one frame now; zero while credit is used up, and for good once ended or unwanted.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.ended || self.unwanted {
            return 0;
        }
        usize::try_from(self.credit.min(u64::from(DATA_LEN))).unwrap_or(0)
    }

    /// Whether the end is still to be said.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !self.ended
    }

    /// Whether the peer said that it wants no more.
    #[must_use]
    pub const fn is_unwanted(&self) -> bool {
        self.unwanted
    }

    /// Bytes sent so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.sent
    }

    /// The header of a data frame of `len` bytes, which the rim sends with the bytes behind it (in one `writev`, or
    /// by splicing them).
    ///
    /// # Panics
    /// Where `len` is over [`room`](Self::room): our own fault.
    pub fn data(&mut self, len: usize) -> Header {
        assert!(len <= self.room(), "{len} bytes on stream {} with room for {}", self.channel, self.room());
        self.sent += len as u64;
        self.credit -= len as u64;
        #[expect(clippy::cast_possible_truncation, reason = "room() is at most DATA_LEN")]
        Header { id: FrameId::DATA, channel: self.channel, len: len as u32 }
    }

    /// Says the end, once. Nothing where it was said before.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if !self.ended {
            self.ended = true;
            frame::put_on(FrameId::END, self.channel, &self.sent, out);
        }
    }

    /// The peer granted `bytes` more.
    ///
    /// # Errors
    /// [`StreamError::Grant`].
    pub fn granted(&mut self, bytes: u32) -> Result<(), StreamError> {
        self.credit =
            self.credit.checked_add(u64::from(bytes)).ok_or(StreamError::Grant { channel: self.channel })?;
        Ok(())
    }

    /// The peer wants no more.
    pub const fn refused(&mut self) {
        self.unwanted = true;
    }
}

/// The receiving half of a stream.
///
/// Its window, the bytes that may be under way or wait for the reader, begins at [`INITIAL_CREDIT`] and doubles up to
/// [`MAX_CREDIT`] while the reader takes everything that arrives: a quick stream is not held up for credit, and a reader
/// that never reads costs no more than at the start.
#[derive(Debug)]
pub struct Receiver {
    channel: u16,
    received: u64,
    /// Bytes the sender may still send.
    credit: u64,
    /// Bytes that arrived and our reader has not taken.
    waiting: u64,
    /// Bytes taken by our reader and not yet granted again.
    taken: u64,
    /// `credit`, `waiting` and `taken` together.
    window: u64,
    /// What the window may grow to.
    most: u64,
    ended: bool,
    unwanted: bool,
}

impl Receiver {
    /// A stream on which nothing has arrived.
    #[must_use]
    pub const fn new(channel: u16) -> Self {
        let window = INITIAL_CREDIT as u64;
        Self {
            channel,
            received: 0,
            credit: window,
            waiting: 0,
            taken: 0,
            window,
            most: MAX_CREDIT as u64,
            ended: false,
            unwanted: false,
        }
    }

    /// The same, with a window that stays as it is: its grants say exactly what was taken, for a sender that keeps what
    /// was not.
    #[must_use]
    pub const fn exact(channel: u16) -> Self {
        let mut exact = Self::new(channel);
        exact.most = exact.window;
        exact
    }

    /// A data frame of `len` bytes arrived. True where the bytes are wanted; after [`refuse`](Self::refuse) they are
    /// counted and dropped.
    ///
    /// # Errors
    /// [`StreamError::Overrun`], [`StreamError::AfterEnd`].
    pub fn data(&mut self, len: usize) -> Result<bool, StreamError> {
        let len = len as u64;
        if self.ended {
            return Err(StreamError::AfterEnd { channel: self.channel });
        }
        if len > self.credit {
            return Err(StreamError::Overrun { channel: self.channel, len, credit: self.credit });
        }
        self.credit -= len;
        self.received += len;
        self.waiting += len;
        Ok(!self.unwanted)
    }

    /// Our reader took `len` bytes; grants them again once they are worth a frame.
    pub fn taken(&mut self, len: usize, out: &mut Vec<u8>) {
        debug_assert!(len as u64 <= self.waiting, "{len} bytes are taken of {}", self.waiting);
        self.waiting = self.waiting.saturating_sub(len as u64);
        self.taken += len as u64;
        if self.ended || self.taken < self.window / 2 {
            return;
        }
        let mut grant = std::mem::take(&mut self.taken);
        if self.waiting == 0 && self.window < self.most {
            grant += self.window;
            self.window *= 2;
        }
        self.credit += grant;
        frame::put_on(FrameId::CREDIT, self.channel, &u32::try_from(grant).unwrap_or(u32::MAX), out);
    }

    /// The sender said its end at `total` bytes.
    ///
    /// # Errors
    /// [`StreamError::AfterEnd`], [`StreamError::Count`].
    pub fn end(&mut self, total: u64) -> Result<(), StreamError> {
        if self.ended {
            return Err(StreamError::AfterEnd { channel: self.channel });
        }
        if total != self.received {
            return Err(StreamError::Count {
                channel: self.channel,
                received: self.received,
                claimed: total,
            });
        }
        self.ended = true;
        Ok(())
    }

    /// Tells the sender, once, that no more is wanted.
    pub fn refuse(&mut self, out: &mut Vec<u8>) {
        if !self.unwanted && !self.ended {
            self.unwanted = true;
            frame::put_raw(FrameId::UNWANTED, self.channel, &[], out);
        }
    }

    /// Whether the sender said its end.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Bytes received so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameBuffer;
    use proptest::prelude::*;

    #[test]
    fn a_short_count_is_an_error() {
        let mut receiver = Receiver::new(1);
        receiver.data(10).unwrap();
        assert!(matches!(receiver.end(11), Err(StreamError::Count { received: 10, claimed: 11, .. })));
    }

    #[test]
    fn bytes_beyond_the_credit_are_refused() {
        let mut receiver = Receiver::new(1);
        for _ in 0..INITIAL_CREDIT / DATA_LEN {
            receiver.data(DATA_LEN as usize).unwrap();
        }
        assert!(matches!(receiver.data(1), Err(StreamError::Overrun { len: 1, credit: 0, .. })));
    }

    #[test]
    fn nothing_may_follow_the_end() {
        let mut receiver = Receiver::new(1);
        receiver.end(0).unwrap();
        assert!(matches!(receiver.data(1), Err(StreamError::AfterEnd { .. })));
        assert!(matches!(receiver.end(0), Err(StreamError::AfterEnd { .. })));
    }

    #[test]
    fn the_window_grows_for_a_reader_that_keeps_up_and_for_no_other() {
        let frames = |reads: bool| {
            let (mut receiver, mut sent) = (Receiver::new(1), 0);
            let mut behind = 0;
            for _ in 0..200 {
                if receiver.data(DATA_LEN as usize).is_err() {
                    break;
                }
                sent += 1;
                behind += DATA_LEN as usize;
                if reads {
                    receiver.taken(std::mem::take(&mut behind), &mut Vec::new());
                } else if behind > DATA_LEN as usize {
                    // It reads, and is always one frame late.
                    behind -= DATA_LEN as usize;
                    receiver.taken(DATA_LEN as usize, &mut Vec::new());
                }
            }
            // Then it stands still: so much more may come.
            let mut more = 0;
            while receiver.data(DATA_LEN as usize).is_ok() {
                more += 1;
            }
            (sent, more)
        };
        let (sent, more) = frames(true);
        assert!(sent == 200 && (9..=16).contains(&more), "{more}");
        let (sent, more) = frames(false);
        assert!(sent == 200 && more < 4, "{more}");
    }

    proptest! {
        /// Whatever the sizes of writes and reads, a sender that obeys `room` never overruns, never starves for good
        /// while the reader reads, and the counts agree.
        #[test]
        fn credit_never_overruns_and_never_starves(writes in proptest::collection::vec(1usize..300_000, 1..40), reads in proptest::collection::vec(1usize..300_000, 1..40)) {
            let (mut sender, mut receiver) = (Sender::new(2), Receiver::new(2));
            let mut buffered = 0usize;
            let mut reads = reads.iter().cycle();
            let mut left: usize = writes.iter().sum();
            let mut writes = writes.iter().cycle();
            while left > 0 || buffered > 0 {
                let n = left.min(*writes.next().unwrap()).min(sender.room());
                if n > 0 {
                    let header = sender.data(n);
                    prop_assert!(receiver.data(header.len as usize).unwrap());
                    left -= n;
                    buffered += n;
                }
                prop_assert!(buffered <= MAX_CREDIT as usize);
                let n = buffered.min(*reads.next().unwrap());
                prop_assert!(n > 0 || sender.room() > 0, "nothing buffered, nothing allowed");
                let mut out = Vec::new();
                receiver.taken(n, &mut out);
                buffered -= n;
                let mut frames = FrameBuffer::new();
                frames.push(&out);
                while let Some(frame) = frames.take().unwrap() {
                    sender.granted(frame.decode().unwrap()).unwrap();
                }
            }
            receiver.end(sender.total()).unwrap();
        }
    }
}
