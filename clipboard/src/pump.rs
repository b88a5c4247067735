//! Carries one paste: a program's pipe to the wire, or the wire to a program's pipe. Memory is bounded by one data frame
//! each way; a reader that is slow slows its writer down and nothing else.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use hospes_protocol::clipboard::{ClipboardError, Side, Sink, SinkStep, Source, SourceStep};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameBuffer, FrameError, FrameId};
use hospes_protocol::limits::{DATA_LEN, HEADER_LEN};
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::pipe::{set_nonblocking, widen};
use crate::readiness::register;

/// Why a paste ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The connection broke.
    #[error("The paste's connection was lost: {0}")]
    Connection(io::Error),
    /// The peer broke the protocol.
    #[error("The peer broke the protocol: {0}")]
    Protocol(#[from] ClipboardError),
    /// Its frames are none.
    #[error("The peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The peer says that it cannot be had.
    #[error("{0}")]
    Failed(WireError),
    /// The program that pasted, or the one that was pasted from, went away.
    #[error("A program of the desktop gave up on the paste: {0}")]
    Program(io::Error),
    /// More than may be.
    #[error("More than {most} bytes came, which is the limit")]
    TooLong {
        /// The limit.
        most: u64,
    },
    /// Nobody wants it any more.
    #[error("The paste was cancelled")]
    Cancelled,
}

/// One paste's connection.
#[derive(Debug)]
pub struct Wire {
    fd: AsyncFd<OwnedFd>,
    input: FrameBuffer,
}

impl Wire {
    /// A connection, with what was already read from it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(fd: OwnedFd, read: &[u8]) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        let mut input = FrameBuffer::new();
        let mut rest = read;
        while !rest.is_empty() {
            let space = input.space();
            let n = space.len().min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            input.filled(n);
            rest = &rest[n..];
        }
        Ok(Self { fd: register(fd, Interest::READABLE | Interest::WRITABLE)?, input })
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Reads some; false at the end.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn fill(&mut self) -> io::Result<bool> {
        let n = read_some(&self.fd, &mut self.input).await?;
        self.input.filled(n);
        Ok(n > 0)
    }

    /// Reads some, or writes some of `out`, whichever is possible first; false at the end.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn advance(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let Self { fd, input } = self;
        if out.is_empty() {
            return self.fill().await;
        }
        let read = tokio::select! {
            biased;
            read = read_some(fd, input) => Some(read?),
            written = fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, out)?)) => {
                let written = written?;
                out.drain(..written);
                None
            }
        };
        if let Some(n) = read {
            input.filled(n);
        }
        Ok(read != Some(0))
    }

    /// Ends the connection, for whoever else has a descriptor of it too.
    pub fn end(&self) {
        let _ = nix::sys::socket::shutdown(self.fd.as_raw_fd(), nix::sys::socket::Shutdown::Both);
    }

    /// The frames that have arrived.
    pub const fn frames(&mut self) -> &mut FrameBuffer {
        &mut self.input
    }
}

/// Where a paste's bytes come from.
#[derive(Debug)]
pub enum From {
    /// A program's pipe.
    Pipe(OwnedFd),
    /// A file of ours, which never makes its reader wait.
    File(File),
}

/// Where a paste's bytes go.
#[derive(Debug)]
pub enum Into {
    /// A program's pipe.
    Pipe(OwnedFd),
    /// A file of ours, and how many bytes it may have.
    File(File, u64),
}

/// Sends all that `from` has. Returns how many bytes that was, once the peer has them.
///
/// # Errors
/// [`PumpError`]; the peer has been told where it can be.
pub async fn source(wire: &mut Wire, side: Side, from: From) -> Result<u64, PumpError> {
    let mut machine = Source::new(side);
    let mut from = Reader::new(from).map_err(PumpError::Program)?;
    // One frame, and what of it has not left yet.
    let mut buffer = vec![0; HEADER_LEN + DATA_LEN as usize];
    let mut unsent = 0..0;
    let mut ended = false;
    loop {
        while let Some(frame) = wire.input.take()? {
            match machine.receive(frame)? {
                SourceStep::Taken => return Ok(machine.total()),
                SourceStep::Refused(None) => return Err(PumpError::Cancelled),
                SourceStep::Refused(Some(error)) => return Err(PumpError::Failed(error)),
                SourceStep::Nothing | SourceStep::Room => (),
            }
        }
        let Wire { fd, input } = &mut *wire;
        if unsent.is_empty() {
            let room = if ended { 0 } else { machine.room() };
            tokio::select! {
                biased;
                n = read_some(fd, input) => arrived(input, n)?,
                read = from.read(&mut buffer[HEADER_LEN..HEADER_LEN + room]), if room > 0 => match read {
                    Ok(0) => {
                        ended = true;
                        let mut end = Vec::new();
                        machine.end(&mut end);
                        buffer[..end.len()].copy_from_slice(&end);
                        unsent = 0..end.len();
                    }
                    Ok(n) => {
                        buffer[..HEADER_LEN].copy_from_slice(&machine.data(n).to_bytes());
                        unsent = 0..HEADER_LEN + n;
                    }
                    Err(error) => {
                        let told = WireError::new(ErrorKind::OS, format!("It cannot be read there: {error}"));
                        refuse(wire, &told).await;
                        return Err(PumpError::Program(error));
                    }
                },
            }
        } else {
            let bytes = &buffer[unsent.clone()];
            tokio::select! {
                biased;
                n = read_some(fd, input) => arrived(input, n)?,
                n = fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)) => {
                    unsent.start += n.map_err(PumpError::Connection)?;
                }
            }
        }
    }
}

async fn read_some(fd: &AsyncFd<OwnedFd>, input: &mut FrameBuffer) -> io::Result<usize> {
    let space = input.space();
    let read = fd.async_io(Interest::READABLE, |fd| match nix::unistd::read(fd, space) {
        // A peer that died with unread bytes resets: to us that is its end.
        Err(Errno::ECONNRESET) => Ok(0),
        result => Ok(result?),
    });
    read.await
}

fn arrived(input: &mut FrameBuffer, n: io::Result<usize>) -> Result<(), PumpError> {
    match n.map_err(PumpError::Connection)? {
        0 => Err(PumpError::Cancelled),
        n => {
            input.filled(n);
            Ok(())
        }
    }
}

/// Receives all that comes, into `into`. Returns how many bytes that was, once the peer has been told.
///
/// # Errors
/// [`PumpError`]; the peer has been told where it can be.
pub async fn sink(wire: &mut Wire, side: Side, into: Into) -> Result<u64, PumpError> {
    receive(wire, side, into).await?.acknowledge(wire).await
}

/// All has come, and the peer does not know yet.
#[derive(Debug)]
pub struct Received(Sink);

impl Received {
    /// Tells the peer. Returns how many bytes came.
    ///
    /// # Errors
    /// [`PumpError::Connection`].
    pub async fn acknowledge(mut self, wire: &mut Wire) -> Result<u64, PumpError> {
        let mut out = Vec::new();
        self.0.done(&mut out);
        wire.write_all(&out).await.map_err(PumpError::Connection)?;
        Ok(self.0.total())
    }
}

/// As [`sink`], and leaves the last word to its caller.
///
/// # Errors
/// [`PumpError`]; the peer has been told where it can be.
pub async fn receive(wire: &mut Wire, side: Side, into: Into) -> Result<Received, PumpError> {
    let mut machine = Sink::new(side);
    let mut into = Writer::new(into).map_err(PumpError::Program)?;
    let mut out = Vec::new();
    loop {
        while let Some(frame) = wire.input.take()? {
            match machine.receive(frame)? {
                SinkStep::Bytes(bytes) => {
                    let n = bytes.len();
                    if let Err(error) = into.write_all(bytes).await {
                        if matches!(error, PumpError::TooLong { .. }) {
                            frame::put(FrameId::FAILED, &WireError::new(ErrorKind::LIMIT, &error), &mut out);
                        } else {
                            machine.refuse(&mut out);
                        }
                        let _ = wire.write_all(&out).await;
                        return Err(error);
                    }
                    machine.taken(n, &mut out);
                }
                // The program sees the end as we let go of its pipe: before the peer is told that all is there.
                SinkStep::Ended => return Ok(Received(machine)),
                SinkStep::Failed(error) => return Err(PumpError::Failed(error)),
                SinkStep::Bye => return Err(PumpError::Cancelled),
                SinkStep::Nothing => (),
            }
        }
        if !out.is_empty() {
            wire.write_all(&out).await.map_err(PumpError::Connection)?;
            out.clear();
        }
        if !wire.fill().await.map_err(PumpError::Connection)? {
            machine.closed()?;
            return Err(PumpError::Cancelled);
        }
    }
}

/// Copies what is kept to a program that pastes it.
pub async fn copy(mut from: File, into: OwnedFd) {
    let Ok(mut into) = Writer::new(Into::Pipe(into)) else { return };
    let mut chunk = vec![0; DATA_LEN as usize];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        if into.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}

/// Writes these bytes to a program that pastes them.
pub async fn give(bytes: &[u8], into: OwnedFd) {
    if let Ok(mut into) = Writer::new(Into::Pipe(into)) {
        let _ = into.write_all(bytes).await;
    }
}

/// All that `from` has.
///
/// # Errors
/// [`PumpError::TooLong`], [`PumpError::Program`].
pub async fn all(from: From, most: u64) -> Result<Vec<u8>, PumpError> {
    let mut from = Reader::new(from).map_err(PumpError::Program)?;
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match from.read(&mut chunk).await.map_err(PumpError::Program)? {
            0 => return Ok(bytes),
            n if bytes.len() as u64 + n as u64 > most => return Err(PumpError::TooLong { most }),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Carries all of a pipe into another.
///
/// # Errors
/// The operating system's.
pub(crate) async fn relay(from: OwnedFd, into: OwnedFd) -> io::Result<()> {
    let mut from = Reader::new(From::Pipe(from))?;
    let mut into = Writer::new(Into::Pipe(into))?;
    let mut chunk = vec![0; DATA_LEN as usize];
    loop {
        match from.read(&mut chunk).await? {
            0 => return Ok(()),
            n => into.write_all(&chunk[..n]).await.map_err(io::Error::other)?,
        }
    }
}

/// Lets the peer read our last word, and waits until it has closed: closing first could take that from it again.
pub async fn part(wire: &mut Wire) {
    let closed = async {
        while wire.fill().await.unwrap_or(false) {
            // What it still sends is nobody's any more.
            while let Ok(Some(_)) = wire.input.take() {}
        }
    };
    let _ = tokio::time::timeout(LINGER, closed).await;
}

/// How long a peer may take to read our last word.
const LINGER: Duration = Duration::from_secs(2);

/// Ends a paste's connection with a reason.
pub async fn refuse(wire: &mut Wire, error: &WireError) {
    let mut last = Vec::new();
    frame::put(FrameId::FAILED, error, &mut last);
    if wire.write_all(&last).await.is_ok() {
        part(wire).await;
    }
}

enum Reader {
    Pipe(AsyncFd<OwnedFd>),
    File(File),
}

impl Reader {
    fn new(from: From) -> io::Result<Self> {
        Ok(match from {
            From::Pipe(fd) => {
                set_nonblocking(&fd)?;
                Self::Pipe(register(fd, Interest::READABLE)?)
            }
            From::File(file) => Self::File(file),
        })
    }

    async fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(fd) => fd.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, space)?)).await,
            Self::File(file) => file.read(space),
        }
    }
}

enum Writer {
    Pipe(AsyncFd<OwnedFd>),
    File { file: File, left: u64, most: u64 },
}

impl Writer {
    fn new(into: Into) -> io::Result<Self> {
        Ok(match into {
            Into::Pipe(fd) => {
                widen(&fd);
                set_nonblocking(&fd)?;
                Self::Pipe(register(fd, Interest::WRITABLE)?)
            }
            Into::File(file, most) => Self::File { file, left: most, most },
        })
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), PumpError> {
        match self {
            Self::Pipe(fd) => {
                while !bytes.is_empty() {
                    let written =
                        fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await;
                    bytes = &bytes[written.map_err(PumpError::Program)?..];
                }
                Ok(())
            }
            Self::File { file, left, most } => {
                *left = left.checked_sub(bytes.len() as u64).ok_or(PumpError::TooLong { most: *most })?;
                file.write_all(bytes).map_err(PumpError::Program)
            }
        }
    }
}

#[cfg(test)]
mod tests;
