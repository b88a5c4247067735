//! Drives an exec, or an attach, with our own terminal, pipes and signals.
//!
//! One loop over poll(2): the connection, our stdin while the guest takes it, each output while it holds something
//! back, and signals. Nothing is read that cannot be passed on, so what is kept is bounded by the streams' credit.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use hospes_protocol::error::WireError;
use hospes_protocol::exec::{ExecError, Exited, Host, HostStep, STDERR, STDOUT, Started};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::DATA_LEN;
use nix::errno::Errno;
use nix::libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::connection::{Connection, ConnectionError, Got};
use crate::signal::linux_number;
use crate::stdio::Sink;
use crate::sys::pipe;
use crate::sys::signals::is_ignored;
use crate::terminal::{RawMode, own_size};

/// Why an exec has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// It was cut, or the guest broke the rules.
    #[error("{}", told(.0))]
    Exec(#[from] ExecError),
    /// The guest refused or failed, in its own words.
    #[error("{}", crate::printable::line(&.0.message))]
    Failed(WireError),
    /// Our own stdin, stdout, stderr or terminal.
    #[error("Cannot {act}")]
    Stdio {
        /// What was tried.
        act: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn told(error: &ExecError) -> String {
    match error {
        ExecError::Cut { .. } => error.to_string(),
        _ => format!("The guest broke the protocol: {error}"),
    }
}

/// What the caller gives the command.
#[derive(Debug)]
pub struct Stdio<'fd> {
    /// Forwarded to the command, where it is.
    pub stdin: Option<BorrowedFd<'fd>>,
    /// Takes the command's stdout.
    pub stdout: BorrowedFd<'fd>,
    /// Takes the command's stderr.
    pub stderr: BorrowedFd<'fd>,
    /// Whether the command has a terminal: ours is made raw and its size follows.
    pub terminal: bool,
    /// Keys that leave the command running and detach from it; none where empty.
    pub detach_keys: Vec<u8>,
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// The command ended, and all its output was written.
    Exited(Exited),
    /// The command runs on without us.
    Detached(Started),
    /// A signal told us to leave; the guest hangs the command up.
    Left(i32),
}

/// Takes signals that ask us to end: so many, and we leave whatever the command does.
const PATIENCE: u32 = 3;

/// Runs the exec whose request `connection` has sent, to its end. With `detach`, only to its start.
///
/// # Errors
/// [`RunError`].
pub fn run(connection: Connection, stdio: &Stdio<'_>, detach: bool) -> Result<Outcome, RunError> {
    let raw = match stdio.stdin {
        Some(fd) if stdio.terminal && io::IsTerminal::is_terminal(&fd) => Some(RawMode::set(fd)),
        _ => None,
    };
    let raw =
        raw.transpose().map_err(|source| RunError::Stdio { act: "set the terminal to raw mode", source })?;
    let mut run = Run {
        connection,
        host: Host::new(),
        stdin: stdio.stdin,
        terminal: stdio.terminal,
        outputs: [Output::new(stdio.stdout), Output::new(stdio.stderr)],
        buffer: Vec::new(),
        stdin_is_wide: false,
        keys: DetachKeys::new(&stdio.detach_keys),
        started: None,
        detach,
        asked_to_end: 0,
        left: None,
    };
    if run.terminal && run.stdin.is_none() {
        // Its reader would wait for keys that never come. A pipe is /dev/null in that case, and needs no telling.
        run.host.stdin_end(&mut run.connection.output);
    }
    run.drive(raw.as_ref())
}

struct Run<'fd> {
    connection: Connection,
    host: Host,
    stdin: Option<BorrowedFd<'fd>>,
    terminal: bool,
    outputs: [Output<'fd>; 2],
    /// Where stdin is read to. Made at the first byte.
    buffer: Vec<u8>,
    stdin_is_wide: bool,
    keys: DetachKeys,
    started: Option<Started>,
    detach: bool,
    asked_to_end: u32,
    left: Option<i32>,
}

impl Run<'_> {
    fn drive(&mut self, raw: Option<&RawMode<'_>>) -> Result<Outcome, RunError> {
        let mut signals = Signals::take(self.terminal)?;
        loop {
            if let Some(outcome) = self.take_frames()? {
                return Ok(outcome);
            }
            self.flush()?;
            let ready = self.wait(&signals)?;
            if ready.signal {
                for signal in signals.delivery.pending() {
                    self.signal(signal, raw)?;
                }
                if let Some(signal) = self.left {
                    return Ok(Outcome::Left(signal));
                }
            }
            for (at, channel) in [(0, STDOUT), (1, STDERR)] {
                if ready.outputs[at] {
                    self.drain(at, channel)?;
                }
            }
            if ready.stdin {
                self.read_stdin()?;
                if let Some(outcome) = self.detached() {
                    return outcome;
                }
            }
            if ready.connection && self.connection.try_read()? == Got::End {
                // Whole frames that came before the end still count.
                if let Some(outcome) = self.take_frames()? {
                    return Ok(outcome);
                }
                self.host.closed()?;
                return Err(ConnectionError::Closed { inside_frame: true }.into());
            }
        }
    }

    /// Obeys every frame that has arrived.
    fn take_frames(&mut self) -> Result<Option<Outcome>, RunError> {
        loop {
            let Some(frame) = self.connection.input.take().map_err(ConnectionError::from)? else {
                return Ok(None);
            };
            match self.host.receive(frame)? {
                HostStep::Nothing | HostStep::StdinRoom => (),
                HostStep::Output(channel, bytes) => {
                    let output = &mut self.outputs[usize::from(channel == STDERR)];
                    match output.put(bytes)? {
                        Put::Written(n) => self.host.written(channel, n, &mut self.connection.output),
                        Put::Closed => self.host.output_closed(channel, &mut self.connection.output),
                    }
                }
                HostStep::StdinUnwanted => self.stdin = None,
                HostStep::Started(started) => {
                    if self.detach {
                        return Ok(Some(self.bye(Outcome::Detached(started))));
                    }
                    let lost = started.lost[0] + started.lost[1];
                    if lost > 0 {
                        crate::ui::note(format_args!("{lost} bytes of earlier output are no longer kept"));
                    }
                    self.started = Some(started);
                }
                HostStep::Exited(exited) => {
                    for output in &mut self.outputs {
                        output.finish()?;
                    }
                    return Ok(Some(self.bye(Outcome::Exited(exited))));
                }
                HostStep::Failed(error) => return Err(RunError::Failed(error)),
            }
        }
    }

    fn flush(&mut self) -> Result<(), RunError> {
        let sent = self.connection.try_flush().map(drop);
        self.deaf(sent)
    }

    /// A guest that takes no more may have said why, or how the command ended: reading tells.
    fn deaf(&mut self, sent: Result<(), ConnectionError>) -> Result<(), RunError> {
        match sent {
            Err(ConnectionError::Write(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.connection.discard_queued();
                self.stdin = None;
                Ok(())
            }
            sent => Ok(sent?),
        }
    }

    /// The guest has told all: whether it hears that we heard it changes nothing.
    fn bye(&mut self, outcome: Outcome) -> Outcome {
        frame::put_raw(FrameId::BYE, 0, &[], &mut self.connection.output);
        let _ = self.connection.try_flush();
        outcome
    }

    fn wait(&self, signals: &Signals) -> Result<Ready, RunError> {
        let mut fds = Vec::with_capacity(5);
        let socket = if self.connection.has_queued() {
            PollFlags::POLLIN | PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        };
        fds.push(PollFd::new(self.connection.as_fd(), socket));
        fds.push(PollFd::new(signals.delivery.get_read().as_fd(), PollFlags::POLLIN));
        // Room for the keys that were held back, too.
        let takes_stdin = !self.connection.has_queued() && self.host.stdin_room() > self.keys.seen;
        let stdin = self.stdin.filter(|_| takes_stdin).map(|fd| {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
            fds.len() - 1
        });
        let mut outputs = [None; 2];
        for (place, output) in outputs.iter_mut().zip(&self.outputs) {
            if !output.pending.is_empty() {
                fds.push(PollFd::new(output.sink.fd(), PollFlags::POLLOUT));
                *place = Some(fds.len() - 1);
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => (),
            Err(error) => {
                return Err(RunError::Stdio { act: "wait for the guest", source: error.into() });
            }
        }
        // An error or a hang-up is found by the read or write that it is reported for.
        let ready = |at: usize| fds[at].any().unwrap_or(false);
        Ok(Ready {
            connection: fds[0].revents().is_some_and(|flags| flags.intersects(!PollFlags::POLLOUT)),
            signal: ready(1),
            stdin: stdin.is_some_and(ready),
            outputs: outputs.map(|at| at.is_some_and(ready)),
        })
    }

    fn read_stdin(&mut self) -> Result<(), RunError> {
        let Some(fd) = self.stdin else { return Ok(()) };
        if self.buffer.is_empty() {
            self.buffer = vec![0; DATA_LEN as usize];
        }
        let room = self.host.stdin_room().min(self.buffer.len()) - self.keys.seen;
        match nix::unistd::read(fd, &mut self.buffer[..room]) {
            Ok(0) => {
                self.host.stdin_end(&mut self.connection.output);
                self.stdin = None;
            }
            Ok(n) => {
                self.widen_stdin(fd, n);
                let n = self.keys.scan(&mut self.buffer, n);
                if n > 0 {
                    let header = self.host.stdin(n);
                    let sent = self.connection.try_send_data(header, &self.buffer[..n]);
                    self.deaf(sent)?;
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) => (),
            // A terminal that is gone, or that belongs to another job: the command gets its end of file.
            Err(Errno::EIO) => {
                self.host.stdin_end(&mut self.connection.output);
                self.stdin = None;
            }
            Err(error) => return Err(RunError::Stdio { act: "read stdin", source: error.into() }),
        }
        Ok(())
    }

    /// Makes a pipe that was full hold more, once: a long stream then comes in large pieces. Of what is no pipe the
    /// system says so, and nothing has changed.
    fn widen_stdin(&mut self, fd: BorrowedFd<'_>, n: usize) {
        if n == pipe::USUAL && !std::mem::replace(&mut self.stdin_is_wide, true) {
            pipe::widen(fd);
        }
    }

    fn detached(&mut self) -> Option<Result<Outcome, RunError>> {
        if !self.keys.pressed {
            return None;
        }
        let started = self.started.take()?;
        frame::put_raw(FrameId::EXEC_DETACH, 0, &[], &mut self.connection.output);
        Some(self.connection.flush().map(|()| self.bye(Outcome::Detached(started))).map_err(RunError::from))
    }

    fn drain(&mut self, at: usize, channel: u16) -> Result<(), RunError> {
        match self.outputs[at].drain()? {
            Put::Written(n) => self.host.written(channel, n, &mut self.connection.output),
            Put::Closed => self.host.output_closed(channel, &mut self.connection.output),
        }
        Ok(())
    }

    fn signal(&mut self, signal: i32, raw: Option<&RawMode<'_>>) -> Result<(), RunError> {
        let out = &mut self.connection.output;
        match signal {
            SIGWINCH => self.host.resize(own_size(), out),
            SIGCONT => {
                if let Some(raw) = raw {
                    raw.again()
                        .map_err(|source| RunError::Stdio { act: "set the terminal to raw mode", source })?;
                    self.host.resize(own_size(), out);
                }
            }
            // Our terminal is gone, and with it the reason for the command's.
            SIGHUP if self.terminal => self.left = Some(signal),
            _ => {
                if let Some(number) = linux_number(signal) {
                    self.host.signal(number, out);
                }
                if matches!(signal, SIGINT | SIGTERM | SIGQUIT | SIGHUP) {
                    self.asked_to_end += 1;
                    if self.asked_to_end >= PATIENCE {
                        self.left = Some(signal);
                    }
                }
            }
        }
        Ok(())
    }
}

struct Ready {
    connection: bool,
    signal: bool,
    stdin: bool,
    outputs: [bool; 2],
}

/// Our signals, as bytes on a socket that poll(2) sees.
struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Signals {
    fn take(terminal: bool) -> Result<Self, RunError> {
        let mut wanted = vec![SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2];
        // What nohup or a shell's background job had ignored stays so.
        wanted.retain(|signal| !is_ignored(*signal));
        if terminal {
            wanted.extend([SIGWINCH, SIGCONT]);
        }
        let made = UnixStream::pair()
            .and_then(|(read, write)| SignalDelivery::with_pipe(read, write, SignalOnly, &wanted));
        let delivery = made.map_err(|source| RunError::Stdio { act: "take signals", source })?;
        Ok(Self { delivery })
    }
}

/// One of our outputs, with what it did not take at once.
struct Output<'fd> {
    sink: Sink<'fd>,
    pending: VecDeque<u8>,
    closed: bool,
}

enum Put {
    /// So many bytes are where they belong, or will never be wanted.
    Written(usize),
    /// Nobody reads any more.
    Closed,
}

impl<'fd> Output<'fd> {
    fn new(fd: BorrowedFd<'fd>) -> Self {
        Self { sink: Sink::new(fd), pending: VecDeque::new(), closed: false }
    }

    /// Writes straight from the receive buffer, and keeps a copy of what does not go now.
    fn put(&mut self, bytes: &[u8]) -> Result<Put, RunError> {
        let mut written = 0;
        if self.closed {
            return Ok(Put::Closed);
        }
        if self.pending.is_empty() {
            match self.write(bytes)? {
                Put::Written(n) => written = n,
                closed @ Put::Closed => return Ok(closed),
            }
        }
        self.pending.extend(&bytes[written..]);
        Ok(Put::Written(written))
    }

    /// The descriptor takes more.
    fn drain(&mut self) -> Result<Put, RunError> {
        let mut all = 0;
        while !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let result = self.write(pending.as_slices().0);
            self.pending = pending;
            match result? {
                Put::Written(0) => break,
                Put::Written(n) => {
                    self.pending.drain(..n);
                    all += n;
                }
                Put::Closed => {
                    self.pending = VecDeque::new();
                    return Ok(Put::Closed);
                }
            }
        }
        Ok(Put::Written(all))
    }

    /// Writes what is left, however long that takes.
    fn finish(&mut self) -> Result<(), RunError> {
        while !self.pending.is_empty() {
            let mut fds = [PollFd::new(self.sink.fd(), PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => self.drain()?,
                Err(error) => return Err(RunError::Stdio { act: "write the output", source: error.into() }),
            };
        }
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<Put, RunError> {
        let mut all = 0;
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(n) => {
                    bytes = &bytes[n..];
                    all += n;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.closed = true;
                    return Ok(Put::Closed);
                }
                Err(source) => return Err(RunError::Stdio { act: "write the output", source }),
            }
        }
        Ok(Put::Written(all))
    }
}

/// Looks for the keys that detach. A key that begins them is held back until the next one tells.
#[derive(Debug, Default)]
struct DetachKeys {
    keys: Vec<u8>,
    seen: usize,
    pressed: bool,
}

impl DetachKeys {
    fn new(keys: &[u8]) -> Self {
        Self { keys: keys.to_vec(), seen: 0, pressed: false }
    }

    /// Takes the keys out of the first `n` bytes of `buffer`; how many are left to be sent.
    fn scan(&mut self, buffer: &mut Vec<u8>, n: usize) -> usize {
        if self.keys.is_empty() {
            return n;
        }
        let mut kept = Vec::with_capacity(n + self.seen);
        for &byte in &buffer[..n] {
            if byte != self.keys[self.seen] {
                kept.extend_from_slice(&self.keys[..self.seen]);
                self.seen = 0;
            }
            if byte == self.keys[self.seen] {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    self.pressed = true;
                    break;
                }
            } else {
                kept.push(byte);
            }
        }
        if buffer.len() < kept.len() {
            buffer.resize(kept.len(), 0);
        }
        buffer[..kept.len()].copy_from_slice(&kept);
        kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(keys: &mut DetachKeys, bytes: &[u8]) -> Vec<u8> {
        let mut buffer = bytes.to_vec();
        let n = keys.scan(&mut buffer, bytes.len());
        buffer[..n].to_vec()
    }

    #[test]
    fn detach_keys_are_found_across_reads_and_false_starts_are_sent() {
        let mut keys = DetachKeys::new(b"\x10\x11");
        assert_eq!(scan(&mut keys, b"ls\x10"), b"ls");
        assert_eq!(scan(&mut keys, b"x"), b"\x10x");
        assert_eq!(scan(&mut keys, b"\x10\x10"), b"\x10");
        assert!(!keys.pressed);
        assert_eq!(scan(&mut keys, b"\x11"), b"");
        assert!(keys.pressed);
        assert_eq!(scan(&mut DetachKeys::default(), b"\x10\x11"), b"\x10\x11");
    }
}
