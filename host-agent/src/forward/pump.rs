//! Carries bytes between a connection to the guest and a local end until both directions have ended.
//!
//! One loop over poll(2) for each carried connection, on a thread of its own: whoever stalls holds up nobody else.

use std::io;
use std::time::{Duration, Instant};

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::forward::{ForwardError, Relay};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::DATA_LEN;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::local::Local;
use crate::connection::{Connection, ConnectionError, Got};

/// The first read's size. It doubles while reads fill it, so that a quiet connection costs little.
const FIRST_READ: usize = 16 * 1024;
/// How long a last word to the guest may take.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Why a carried connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The guest's end broke or never opened, in the guest's words.
    #[error("{}", crate::printable::line(&.0.message))]
    Guest(WireError),
    /// The connection to the guest broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// It was cut, or the guest broke the rules.
    #[error("{}", told(.0))]
    Forward(#[from] ForwardError),
    /// This machine's end broke.
    #[error("The connection broke on this machine")]
    Local(#[source] io::Error),
}

fn told(error: &ForwardError) -> String {
    match error {
        ForwardError::Cut { .. } => "The connection to the guest was lost".to_owned(),
        _ => format!("The guest broke the protocol: {error}"),
    }
}

/// Carries a connection whose request has been sent, to its end. An end that broke resets the other.
///
/// # Errors
/// [`PumpError`].
pub fn pump(connection: Connection, local: &mut impl Local) -> Result<(), PumpError> {
    let mut pump = Pump {
        connection,
        relay: Relay::host(),
        buffer: Vec::new(),
        next_read: FIRST_READ,
        broken: None,
        deaf: false,
        gone: false,
    };
    let result = pump.run(local);
    if result.is_err() {
        local.reset();
    }
    result
}

struct Pump {
    connection: Connection,
    relay: Relay,
    buffer: Vec<u8>,
    next_read: usize,
    /// What broke our end.
    broken: Option<io::Error>,
    /// The guest takes no more; it may have said why.
    deaf: bool,
    /// The guest closed, both directions having ended: what it sent may still be written.
    gone: bool,
}

/// What is ready.
#[derive(Default)]
struct Ready {
    connection: bool,
    input: bool,
    output: bool,
}

impl Pump {
    fn run(&mut self, local: &mut impl Local) -> Result<(), PumpError> {
        loop {
            self.take_frames(local)?;
            if self.relay.take_shut() {
                local.shut_writing();
            }
            if self.relay.take_unwanted() {
                local.shut_reading();
            }
            if self.relay.failure().is_some() {
                return Err(self.failure());
            }
            if self.relay.is_over() {
                self.say_bye();
                return Ok(());
            }
            let sent = if self.gone { Ok(true) } else { self.connection.try_flush() };
            self.unless_told(sent.map(drop))?;
            let ready = self.wait(local)?;
            if ready.connection && self.connection.try_read()? == Got::End {
                // Whole frames that came before the end still count.
                self.take_frames(local)?;
                if self.relay.failure().is_none() {
                    self.relay.closed()?;
                }
                self.gone = true;
            }
            if ready.output {
                self.drain(local);
            }
            if ready.input {
                self.read(local)?;
            }
        }
    }

    /// Both counts are right. The guest closes first: closing before it could take our last bytes from it. Whatever
    /// goes wrong with that changes nothing any more.
    fn say_bye(&mut self) {
        if self.gone || self.deaf {
            return;
        }
        frame::put_raw(FrameId::BYE, 0, &[], &mut self.connection.output);
        self.connection.set_deadline(Some(Instant::now() + LAST_WORD));
        if self.connection.flush().is_ok() {
            while self.connection.frame().is_ok() {}
        }
    }

    fn take_frames(&mut self, local: &mut impl Local) -> Result<(), PumpError> {
        while let Some(frame) = self.connection.input.take().map_err(ConnectionError::from)? {
            let mut broken = None;
            self.relay
                .receive(frame, &mut self.connection.output, |bytes| write(local, bytes, &mut broken))?;
            self.judge(broken, local);
        }
        Ok(())
    }

    fn drain(&mut self, local: &mut impl Local) {
        while !self.relay.to_socket().is_empty() {
            let mut broken = None;
            let len = write(local, self.relay.to_socket(), &mut broken);
            if broken.is_some() {
                return self.judge(broken, local);
            }
            if len == 0 {
                return;
            }
            self.relay.written(len, &mut self.connection.output);
        }
    }

    fn read(&mut self, local: &mut impl Local) -> Result<(), PumpError> {
        let room = self.relay.room().min(self.next_read);
        if room == 0 {
            return Ok(());
        }
        if self.buffer.len() < self.next_read {
            self.buffer.resize(self.next_read, 0);
        }
        match local.read(&mut self.buffer[..room]) {
            Ok(len) => {
                if len == self.next_read {
                    self.next_read = (self.next_read * 2).min(DATA_LEN as usize);
                }
                if let Some(header) = self.relay.read(len, &mut self.connection.output) {
                    let sent = self.connection.try_send_data(header, &self.buffer[..len]);
                    self.unless_told(sent)?;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => self.broke(error),
        }
        Ok(())
    }

    fn judge(&mut self, broken: Option<io::Error>, local: &impl Local) {
        match broken {
            Some(error) if local.only_unread(&error) => self.relay.refuse(&mut self.connection.output),
            Some(error) => self.broke(error),
            None => (),
        }
    }

    fn broke(&mut self, error: io::Error) {
        let told = WireError::new(ErrorKind::OS, format!("The connection broke on the host: {error}"));
        self.relay.broke(told, &mut self.connection.output);
        self.broken = Some(error);
    }

    /// The failure that the relay has: ours, of which the guest is told, or the guest's.
    fn failure(&mut self) -> PumpError {
        if let Some(error) = self.broken.take() {
            self.connection.set_deadline(Some(Instant::now() + LAST_WORD));
            // It learns it from the close, too.
            let _ = self.connection.flush();
            return PumpError::Local(error);
        }
        let unknown = || WireError::new(ErrorKind::OTHER, "The connection broke in the guest");
        PumpError::Guest(self.relay.failure().cloned().unwrap_or_else(unknown))
    }

    /// A guest that takes no more may have said why, or that it is done: reading tells.
    fn unless_told(&mut self, sent: Result<(), ConnectionError>) -> Result<(), PumpError> {
        match sent {
            Err(ConnectionError::Write(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.connection.discard_queued();
                self.deaf = true;
                Ok(())
            }
            sent => Ok(sent?),
        }
    }

    fn wait(&self, local: &impl Local) -> Result<Ready, PumpError> {
        let mut fds = Vec::with_capacity(3);
        let mut add = |fd, flags| {
            fds.push(PollFd::new(fd, flags));
            fds.len() - 1
        };
        let queued = self.connection.has_queued();
        let writable = if queued { PollFlags::POLLOUT } else { PollFlags::empty() };
        let connection = (!self.gone)
            .then(|| add(std::os::fd::AsFd::as_fd(&self.connection), PollFlags::POLLIN | writable));
        let reads = self.relay.room() > 0 && !queued && !self.deaf && !self.gone;
        let input = reads.then(|| add(local.input(), PollFlags::POLLIN));
        let writes = !self.relay.to_socket().is_empty();
        let output = writes.then(|| add(local.output(), PollFlags::POLLOUT));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => (),
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(PumpError::Local(error.into())),
        }
        // An error or a hang-up is found by the read or write that it is reported for.
        let ready = |at: Option<usize>| at.is_some_and(|at| fds[at].any().unwrap_or(true));
        let readable =
            |at: usize| fds[at].revents().is_none_or(|flags| flags.intersects(!PollFlags::POLLOUT));
        Ok(Ready { connection: connection.is_some_and(readable), input: ready(input), output: ready(output) })
    }
}

fn write(local: &mut impl Local, bytes: &[u8], broken: &mut Option<io::Error>) -> usize {
    match local.write(bytes) {
        Ok(len) => len,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
        Err(error) => {
            *broken = Some(error);
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Stream;
    use crate::forward::local::Socket;
    use hospes_protocol::forward::Open;
    use hospes_protocol::frame::FrameBuffer;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    /// A guest made of a relay and blocking calls: echoes what it gets, in the order of the rules.
    fn echo(mut wire: UnixStream, until_end: bool) {
        let mut out = Vec::new();
        let mut relay = Relay::guest(&Open { peer: String::new() }, &mut out);
        let (mut frames, mut heard, mut shut) = (FrameBuffer::new(), Vec::new(), false);
        loop {
            wire.write_all(&out).unwrap();
            out.clear();
            let len = wire.read(frames.space()).unwrap();
            if len == 0 {
                relay.closed().unwrap();
                return;
            }
            frames.filled(len);
            while let Some(frame) = frames.take().unwrap() {
                let offer = |bytes: &[u8]| {
                    heard.extend_from_slice(bytes);
                    bytes.len()
                };
                relay.receive(frame, &mut out, offer).unwrap();
            }
            shut |= relay.take_shut();
            while !heard.is_empty() && relay.room() > 0 && (shut || !until_end) {
                let len = heard.len().min(relay.room());
                let header = relay.read(len, &mut out).unwrap();
                out.extend_from_slice(&header.to_bytes());
                out.extend(heard.drain(..len));
            }
            if shut && heard.is_empty() && relay.room() > 0 {
                assert!(relay.read(0, &mut out).is_none());
            }
            if relay.is_dismissed() {
                return;
            }
        }
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    fn connection() -> (Connection, UnixStream) {
        let (host, guest) = UnixStream::pair().unwrap();
        (Connection::new(Stream::new(host.into())), guest)
    }

    #[test]
    fn bytes_and_half_closes_travel_both_ways() {
        for until_end in [true, false] {
            let (connection, guest) = connection();
            let guest = std::thread::spawn(move || echo(guest, until_end));
            let (mut caller, ours) = tcp_pair();
            let pumped = std::thread::spawn(move || pump(connection, &mut Socket::from(ours)));
            let len = if until_end { 300_000 } else { 5_000_000 };
            let sent: Vec<u8> = (0..len).map(|n: u32| (n * 7 / 5).to_le_bytes()[0]).collect();
            let writer = {
                let (mut caller, sent) = (caller.try_clone().unwrap(), sent.clone());
                std::thread::spawn(move || {
                    caller.write_all(&sent).unwrap();
                    caller.shutdown(std::net::Shutdown::Write).unwrap();
                })
            };
            let mut heard = Vec::new();
            caller.read_to_end(&mut heard).unwrap();
            assert!(heard == sent);
            writer.join().unwrap();
            pumped.join().unwrap().unwrap();
            guest.join().unwrap();
        }
    }

    #[test]
    fn a_refused_call_resets_the_caller_with_the_guests_words() {
        let (connection, mut guest) = connection();
        let mut wire = Vec::new();
        frame::put(FrameId::FAILED, &WireError::new(ErrorKind::UNREACHABLE, "Refused\u{1b}"), &mut wire);
        guest.write_all(&wire).unwrap();
        let (mut caller, ours) = tcp_pair();
        let error = pump(connection, &mut Socket::from(ours)).unwrap_err();
        assert_eq!(error.to_string(), "Refused\\u{1b}");
        assert_eq!(caller.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_lost_guest_is_an_error_and_resets_the_caller() {
        let (connection, guest) = connection();
        let (mut caller, ours) = tcp_pair();
        drop(guest);
        assert!(matches!(
            pump(connection, &mut Socket::from(ours)),
            Err(PumpError::Forward(ForwardError::Cut { .. }))
        ));
        assert_eq!(caller.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_reset_here_is_told_to_the_guest() {
        let (connection, mut guest) = connection();
        let (caller, ours) = tcp_pair();
        Local::reset(&mut Socket::from(caller));
        assert!(matches!(pump(connection, &mut Socket::from(ours)), Err(PumpError::Local(_))));
        let mut frames = FrameBuffer::new();
        let len = guest.read(frames.space()).unwrap();
        frames.filled(len);
        assert_eq!(frames.take().unwrap().unwrap().id, FrameId::FAILED);
    }
}
