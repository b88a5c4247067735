//! The host's end of a connection: a Unix socket, or an in-memory pipe to another guest.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;

use mio::net::UnixStream;

use super::{ByteRing, IoBuf, PipeEnd, iobuf};

/// A byte stream that never blocks.
pub enum Endpoint {
    /// A connected Unix stream socket, non-blocking.
    Unix(UnixStream),
    /// One end of a pipe within this process.
    Pipe(PipeEnd),
}

/// What a transfer found at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Bytes moved. True: nothing more can move before the next readiness event.
    Moved(usize, bool),
    /// Reading: the other side will write no more, and may still read.
    Ended,
    /// The other side is gone, or (writing) will read no more.
    Broken,
}

impl Endpoint {
    /// Reads into the pieces, in order. The pieces have room for one byte at least.
    pub fn read(&mut self, to: &[IoBuf<'_>]) -> StreamEnd {
        let stream = match self {
            Self::Unix(stream) => stream,
            Self::Pipe(pipe) => return pipe.read(to),
        };
        loop {
            match iobuf::receive(stream, to) {
                Ok(received) if received.bytes == 0 => return StreamEnd::Ended,
                Ok(received) => return StreamEnd::Moved(received.bytes, received.drained),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => return StreamEnd::Moved(0, true),
                    _ => return StreamEnd::Broken,
                },
            }
        }
    }

    /// Writes the pieces, in order, as far as the stream takes them.
    pub fn write(&mut self, from: &[IoBuf<'_>]) -> StreamEnd {
        match self {
            Self::Unix(stream) => written(|| iobuf::send(stream, from), from.iter().map(IoBuf::len).sum()),
            Self::Pipe(pipe) => pipe.write(from),
        }
    }

    /// Writes what waits in `ring` and drops what was taken.
    pub fn write_ring(&mut self, ring: &mut ByteRing) -> StreamEnd {
        let end = match self {
            Self::Unix(stream) => written(|| stream.write_vectored(&ring.as_io_slices()), ring.len()),
            Self::Pipe(pipe) => pipe.write_bytes(&ring.as_io_slices()),
        };
        if let StreamEnd::Moved(count, _) = end {
            ring.consume(count);
        }
        end
    }

    /// Ends one direction. A stream that is gone already is no error.
    pub fn shutdown(&mut self, how: Shutdown) {
        match self {
            Self::Unix(stream) => drop(stream.shutdown(how)),
            Self::Pipe(pipe) => pipe.shutdown(how),
        }
    }
}

fn written(mut write: impl FnMut() -> io::Result<usize>, asked: usize) -> StreamEnd {
    loop {
        match write() {
            Ok(count) => return StreamEnd::Moved(count, count < asked),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => return StreamEnd::Moved(0, true),
                _ => return StreamEnd::Broken,
            },
        }
    }
}
