//! Frames on a stream: each behind its length, four bytes, big-endian. passt, gvproxy, `socket_vmnet` and QEMU's "stream"
//! all have it so.

use std::ops::Range;

use mio::net::UnixStream;
use vm_memory::VolatileSlice;

use crate::io::{ByteRing, Endpoint, IoBuf, StreamEnd};

/// Bytes of a frame's length.
const PREFIX: usize = 4;
/// The shortest frame: its header.
pub const FRAME_MIN: usize = 14;
/// The longest: that header, a VLAN's tag and the largest IP packet.
pub const FRAME_MAX: usize = FRAME_MIN + 4 + 65535;

/// The socket. Once it is broken it takes all frames, and gives none.
pub struct Link {
    stream: Option<Endpoint>,
    readable: bool,
    writable: bool,
    /// What was read and not yet given.
    received: Box<[u8]>,
    filled: Range<usize>,
    /// The rest of frames of which the stream took a part.
    unsent: ByteRing,
}

impl Link {
    /// Of a stream that is connected, and whose news are told to [`ready`](Self::ready).
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream: Some(Endpoint::Unix(stream)),
            readable: true,
            writable: true,
            received: vec![0; 2 * (PREFIX + FRAME_MAX)].into(),
            filled: 0..0,
            unsent: ByteRing::default(),
        }
    }

    /// The stream has news.
    pub fn ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// The next frame that came, until it is [`taken`](Self::taken).
    pub fn frame(&mut self) -> Option<&[u8]> {
        loop {
            if let Some(frame) = self.whole() {
                return Some(&self.received[frame]);
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// Drops the frame that [`frame`](Self::frame) gave.
    pub fn taken(&mut self) {
        if let Some(frame) = self.whole() {
            self.filled.start = frame.end;
        }
    }

    /// What goes before a frame of so many bytes.
    #[must_use]
    pub fn prefix(bytes: usize) -> [u8; PREFIX] {
        u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
    }

    /// Whether frames may be sent. False: there will be news when they may.
    pub fn is_clear(&mut self) -> bool {
        while self.writable && !self.unsent.is_empty() {
            let Some(stream) = &mut self.stream else { break };
            match stream.write_ring(&mut self.unsent) {
                StreamEnd::Moved(_, blocked) => self.writable = !blocked,
                StreamEnd::Ended | StreamEnd::Broken => self.fail("has hung up"),
            }
        }
        self.unsent.is_empty()
    }

    /// Sends frames, each behind its prefix. Where the stream takes a part of them, the rest is kept: send no more before
    /// the link [is clear](Self::is_clear).
    pub fn send(&mut self, frames: &[IoBuf<'_>]) {
        let Some(stream) = &mut self.stream else { return };
        let bytes: usize = frames.iter().map(IoBuf::len).sum();
        match stream.write(frames) {
            StreamEnd::Moved(sent, blocked) => {
                self.writable = !blocked;
                if sent < bytes {
                    self.unsent.push(frames, sent);
                }
            }
            StreamEnd::Ended | StreamEnd::Broken => self.fail("has hung up"),
        }
    }

    /// Where the next frame lies, if it is all there.
    fn whole(&mut self) -> Option<Range<usize>> {
        let (prefix, rest) = self.received[self.filled.clone()].split_first_chunk::<PREFIX>()?;
        let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if !(FRAME_MIN..=FRAME_MAX).contains(&len) {
            self.fail("sends what are no frames");
            return None;
        }
        let start = self.filled.start + PREFIX;
        (rest.len() >= len).then(|| start..start + len)
    }

    /// Reads once. True: something came.
    fn fill(&mut self) -> bool {
        let (Some(stream), true) = (&mut self.stream, self.readable) else { return false };
        // Less than a frame is left, so there is room for a whole one behind it.
        self.received.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        let room = IoBuf::from(VolatileSlice::from(&mut self.received[self.filled.end..]));
        match stream.read(&[room]) {
            StreamEnd::Moved(bytes, drained) => {
                self.readable = !drained;
                self.filled.end += bytes;
                bytes > 0
            }
            StreamEnd::Ended | StreamEnd::Broken => {
                self.fail("has hung up");
                false
            }
        }
    }

    fn fail(&mut self, why: &str) {
        tracing::error!("The guest has no network until it is restarted: the program at its socket {why}");
        self.stream = None;
        self.filled = 0..0;
        self.unsent.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net;

    use super::*;

    fn link() -> (Link, net::UnixStream) {
        let (near, far) = net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        (Link::new(UnixStream::from_std(near)), far)
    }

    fn framed(bytes: &[u8]) -> Vec<u8> {
        [&Link::prefix(bytes.len()), bytes].concat()
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let frames = [vec![1; 14], vec![2; FRAME_MAX], vec![3; 1500], vec![4; 60_000], vec![5; 14]];
        let stream: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
        for cut in [1, 13, 1000, 65_536, stream.len()] {
            let (mut link, mut far) = link();
            let mut seen = Vec::new();
            for bytes in stream.chunks(cut) {
                far.write_all(bytes).unwrap();
                link.ready(true, false);
                while let Some(frame) = link.frame() {
                    seen.push(frame.to_vec());
                    link.taken();
                }
            }
            assert!(seen == frames, "cut by {cut}");
        }
    }

    #[test]
    fn what_is_no_frame_or_no_end_ends_the_link_and_what_is_sent_then_is_lost() {
        for bytes in [vec![0, 0, 0, 13], vec![0xff; 4], Link::prefix(FRAME_MAX + 1).to_vec(), Vec::new()] {
            let (mut link, mut far) = link();
            far.write_all(&bytes).unwrap();
            far.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(link.frame(), None);
            let mut frame = framed(&[7; 20]);
            link.send(&[IoBuf::from(VolatileSlice::from(&mut frame[..]))]);
            assert!(link.is_clear());
            assert_eq!(far.read(&mut [0; 10]).unwrap(), 0, "something was sent behind {bytes:?}");
        }
    }

    #[test]
    fn a_slow_reader_gets_every_frame_and_no_half_ones() {
        let (mut link, mut far) = link();
        let (mut sent, mut seen) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; 100_000];
        for byte in 0..200_u8 {
            let mut frame = framed(&vec![byte; 5000]);
            while !link.is_clear() {
                let count = far.read(&mut buffer).unwrap();
                seen.extend_from_slice(&buffer[..count]);
                link.ready(false, true);
            }
            sent.extend_from_slice(&frame);
            link.send(&[IoBuf::from(VolatileSlice::from(&mut frame[..]))]);
        }
        while seen.len() < sent.len() {
            let count = far.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..count]);
            link.ready(false, true);
            link.is_clear();
        }
        assert!(seen == sent);
    }
}
