//! Frames under construction: records and file bytes gathered up to a data frame's size, each record whole.

use std::sync::mpsc;

use hospes_protocol::copy::archive::{DATA_HEADER, Record, data_header};
use hospes_protocol::limits::{DATA_LEN, HEADER_LEN};

/// Payload bytes of a full frame.
const PAYLOAD: usize = DATA_LEN as usize;

/// A data frame's bytes: room for its header, then its payload.
#[derive(Debug)]
pub struct Frame {
    bytes: Vec<u8>,
    end: usize,
}

impl Frame {
    fn new() -> Self {
        // One byte more than a payload, for the read that shows that a file has grown.
        Self { bytes: vec![0; HEADER_LEN + PAYLOAD + 1], end: HEADER_LEN }
    }

    /// Payload bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.end - HEADER_LEN
    }

    /// Whether there is no payload.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..self.end]
    }

    /// The whole frame, with this header in front.
    pub fn with_header(&mut self, header: [u8; HEADER_LEN]) -> &[u8] {
        self.bytes[..HEADER_LEN].copy_from_slice(&header);
        &self.bytes[..self.end]
    }
}

/// Nobody takes frames any more: the connection is gone for good, or somebody asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The copy was stopped")]
pub struct Stopped;

/// Gathers records into frames and hands the full ones on.
#[derive(Debug)]
pub struct Frames {
    current: Frame,
    scratch: Vec<u8>,
    out: mpsc::SyncSender<Frame>,
    used: mpsc::Receiver<Frame>,
}

/// The other end: where the full frames arrive.
#[derive(Debug)]
pub struct FrameQueue {
    /// Full frames, in order; it ends after the last.
    pub full: mpsc::Receiver<Frame>,
    /// Frames to be used again.
    pub used: mpsc::Sender<Frame>,
}

/// A gatherer and its queue. One frame may wait while the next is filled.
#[must_use]
pub fn frames() -> (Frames, FrameQueue) {
    let (out, full) = mpsc::sync_channel(1);
    let (back, used) = mpsc::channel();
    (Frames { current: Frame::new(), scratch: Vec::new(), out, used }, FrameQueue { full, used: back })
}

impl Frames {
    /// Adds one record.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn record(&mut self, record: &Record<'_>) -> Result<(), Stopped> {
        self.scratch.clear();
        record.encode(&mut self.scratch);
        let len = self.scratch.len();
        assert!(len <= PAYLOAD, "a record of {len} bytes has no frame");
        if self.current.len() + len > PAYLOAD {
            self.flush()?;
        }
        let end = self.current.end;
        self.current.bytes[end..end + len].copy_from_slice(&self.scratch);
        self.current.end += len;
        Ok(())
    }

    /// Adds file bytes: `fill` reads into the room it is given (at least `least` bytes, at most `most`) and says how
    /// many it read and how many of those count.
    ///
    /// # Errors
    /// [`Stopped`], or what `fill` says.
    pub fn data<E: From<Stopped>>(
        &mut self,
        least: usize,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        if self.current.len() + DATA_HEADER + least.min(PAYLOAD - DATA_HEADER) > PAYLOAD {
            self.flush()?;
        }
        let start = self.current.end + DATA_HEADER;
        let room = most.min(HEADER_LEN + PAYLOAD - start);
        let read = fill(&mut self.current.bytes[start..=start + room])?.min(room);
        if read > 0 {
            #[expect(clippy::cast_possible_truncation, reason = "within a frame")]
            self.current.bytes[start - DATA_HEADER..start].copy_from_slice(&data_header(read as u32));
            self.current.end = start + read;
        }
        Ok(read)
    }

    /// Hands on what there is.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn flush(&mut self) -> Result<(), Stopped> {
        if self.current.is_empty() {
            return Ok(());
        }
        let mut next = self.used.try_recv().unwrap_or_else(|_| Frame::new());
        next.end = HEADER_LEN;
        self.out.send(std::mem::replace(&mut self.current, next)).map_err(|_| Stopped)
    }
}
