//! A fuzzer's input, taken from the front.

use hospes_protocol::frame::{Frame, FrameBuffer, FrameId};
use hospes_protocol::limits::DATA_LEN;

/// What is left of an input. Zeros follow its end.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

/// Bytes for data frames: their content is nobody's concern here.
pub(crate) static ZEROS: [u8; DATA_LEN as usize] = [0; DATA_LEN as usize];

impl<'a> Input<'a> {
    /// The next move, or none: the input is used up.
    pub(crate) fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A length of up to `max`, near its ends more often than between.
    pub(crate) fn len(&mut self, max: usize) -> usize {
        match self.byte() {
            0 => 0,
            1 => max,
            2 => max.saturating_sub(1),
            n if n < 128 => usize::from(n).min(max),
            _ => (self.u32() as usize).checked_rem(max + 1).unwrap_or(0),
        }
    }

    /// Any frame at all.
    pub(crate) fn frame(&mut self) -> Frame<'a> {
        let id = FrameId(self.u16());
        let channel = u16::from(self.byte());
        let len = usize::from(self.byte());
        Frame { id, channel, payload: self.take(len) }
    }
}

/// Cuts bytes into frames, each given to `each` until one is refused.
pub(crate) fn frames(mut bytes: &[u8], mut each: impl FnMut(Frame<'_>) -> bool) {
    let mut buffer = FrameBuffer::new();
    loop {
        match buffer.take() {
            Ok(Some(frame)) if each(frame) => (),
            Ok(Some(_)) | Err(_) => return,
            Ok(None) if bytes.is_empty() => return,
            Ok(None) => {
                buffer.push(bytes);
                bytes = &[];
            }
        }
    }
}

/// The same of bytes that our own machine wrote: nothing may be refused or left over.
pub(crate) fn own_frames(bytes: &[u8], mut each: impl FnMut(Frame<'_>)) {
    let mut seen = 0;
    frames(bytes, |frame| {
        seen += hospes_protocol::limits::HEADER_LEN + frame.payload.len();
        each(frame);
        true
    });
    assert_eq!(seen, bytes.len(), "a machine wrote something that is no frame");
}
