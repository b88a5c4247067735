//! Exec: one command in the guest, on a connection of its own.
//!
//! ```text
//! host                                               guest's worker
//!  | EXEC argv, env, cwd, user, streams …             |
//!  | DATA 0 … END 0                 stdin             |
//!  |------------------------------------------------->|  spawn
//!  |                       EXEC_STARTED id, pid       |
//!  |         DATA 1, DATA 2 …       stdout, stderr    |
//!  |<-------------------------------------------------|
//!  | CREDIT, EXEC_SIGNAL, EXEC_RESIZE …               |
//!  |------------------------------------------------->|
//!  |         END 1, END 2, EXEC_EXITED status, usage  |
//!  |<-------------------------------------------------|
//!  | BYE                                              |
//! ```
//! The exit status comes after both streams' ends, which carry their counts. A connection that closes before
//! `EXEC_EXITED` was cut: the host reports it, and the guest hangs the command up, and kills it
//! [`HANGUP_GRACE_MS`](crate::limits::HANGUP_GRACE_MS) later unless it was detached.
//!
//! ```text
//!            EXEC_STARTED            END 1 and END 2             EXEC_EXITED
//!  Opening ----------------> Running ----------------> Draining ------------> Done
//!     |  FAILED                 |  FAILED, cut            |
//!     +--------> Failed <-------+-------------------------+
//! ```
//! [`Host`] and [`Guest`] are the two ends of that, without I/O: the rim feeds frames in, obeys the step that comes
//! out, and sends what they append to `out`. Payload bytes pass through them uncopied.

use serde::{Deserialize, Serialize};

use crate::codec::CodecError;
use crate::error::WireError;
use crate::frame::{self, Frame, FrameId, Header};
use crate::limits::{ARGV, ENV, PATH, USER_NAME};
use crate::open_enum;
use crate::stream::{Receiver, Sender, StreamError};

/// The stream number of the command's standard input.
pub const STDIN: u16 = 0;
/// The stream number of the command's standard output, of both outputs where they are one, and of a terminal.
pub const STDOUT: u16 = 1;
/// The stream number of the command's standard error.
pub const STDERR: u16 = 2;

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exec {
    /// The user it runs as; empty for the guest's only human user.
    pub user: String,
    /// Program and arguments, never a shell string. A program without a slash is looked up in the command's `PATH`.
    /// Empty: the user's login shell.
    pub argv: Vec<Vec<u8>>,
    /// Environment entries, added to the session's and replacing what has their name.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory; a relative one starts at the user's home, which is also the default.
    pub cwd: Option<Vec<u8>>,
    /// Run through the user's login shell's start-up files: argv 0 gets a dash, as login(1) does.
    pub login: bool,
    /// Where the standard input comes from.
    pub stdin: Stdin,
    /// One pipe for both outputs, so that their order is exact. For callers whose own two are the same file.
    pub merge_outputs: bool,
    /// A terminal in place of the three pipes.
    pub terminal: Option<Terminal>,
    /// Milliseconds until the command is ended (`SIGTERM`, then `SIGKILL`); none without.
    pub timeout_ms: Option<u64>,
    /// Start, answer, and go on without this connection; output is kept for `attach`.
    pub detach: bool,
    /// Bytes of output to keep per stream for a detached command; none for the default.
    pub keep_output: Option<u64>,
}

open_enum! {
    /// Where a command's standard input comes from.
    #[derive(Default)]
    pub struct Stdin(u8) {
        /// `/dev/null`.
        NULL = 0,
        /// Stream 0 of the connection.
        STREAM = 1,
    }
}

/// A pseudo-terminal for the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The `TERM` of the caller, for the command's environment.
    pub term: String,
    /// Its size at the start.
    pub size: WindowSize,
}

/// A terminal's size, as `struct winsize` has it (`tty_ioctl(4)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WindowSize {
    /// Columns, in characters.
    pub cols: u16,
    /// Rows, in characters.
    pub rows: u16,
    /// Width, in pixels, or zero.
    pub width: u16,
    /// Height, in pixels, or zero.
    pub height: u16,
}

/// A signal for the command's process group, by its Linux number (the same on every architecture we run on).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal(pub u8);

/// A kept command's number within its worker. Never used twice while the worker lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExecId(pub u64);

/// The command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its number, for `attach`.
    pub id: ExecId,
    /// Its process id in the guest.
    pub pid: u32,
    /// Bytes of stdout and stderr that are no longer kept (after an attach): the streams begin behind them.
    pub lost: [u64; 2],
}

/// Comes back to a detached command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The user it runs as; empty as in [`Exec::user`].
    pub user: String,
    /// Which command.
    pub id: ExecId,
}

open_enum! {
    /// How a command ended.
    pub struct ExitKind(u8) {
        /// It exited; the value is its status, 0 to 255.
        CODE = 0,
        /// A signal ended it; the value is the signal's number.
        SIGNAL = 1,
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit or signal.
    pub kind: ExitKind,
    /// The status or the signal's number.
    pub value: u8,
}

impl ExitStatus {
    /// The status as a shell shows it: the code, or 128 and the signal's number.
    #[must_use]
    pub const fn shell_code(self) -> u8 {
        match self.kind {
            ExitKind::SIGNAL => 128u8.saturating_add(self.value),
            _ => self.value,
        }
    }
}

/// What the command used, from wait4(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub system_us: u64,
    /// From spawn to exit, microseconds.
    pub elapsed_us: u64,
    /// Largest resident set, KiB.
    pub max_rss_kib: u64,
}

/// The command's end, after its streams' ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// How.
    pub status: ExitStatus,
    /// True where [`Exec::timeout_ms`] ended it.
    pub timed_out: bool,
    /// What it used.
    pub usage: Usage,
}

/// How the peer broke the rules of exec.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A stream's rules.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A message does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A frame that may not come now.
    #[error("Peer sent {id} while the command was {state}")]
    Unexpected {
        /// The frame.
        id: FrameId,
        /// Where the command stood.
        state: &'static str,
    },
    /// The exit status came before the streams' ends.
    #[error("Peer sent the exit status before the end of its output")]
    EarlyExit,
    /// The connection closed before the exit status.
    #[error("The connection was lost while the command was {state}")]
    Cut {
        /// Where the command stood.
        state: &'static str,
    },
    /// The request passes a limit.
    #[error("The request has {count} {what}, the limit is {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// A NUL byte where the guest's kernel ends a string.
    #[error("The request has a NUL byte in its {what}")]
    Nul {
        /// In what.
        what: &'static str,
    },
    /// An environment entry without a name, or with an equals sign in it.
    #[error("The request has an environment entry without a valid name")]
    EnvName,
}

impl Exec {
    /// Holds the request against its limits. The guest calls it on every request, the host before it sends one.
    ///
    /// # Errors
    /// [`ExecError::TooMany`], [`ExecError::Nul`], [`ExecError::EnvName`].
    pub fn check(&self) -> Result<(), ExecError> {
        at_most("arguments", self.argv.len(), ARGV)?;
        at_most("environment entries", self.env.len(), ENV)?;
        at_most("bytes of user name", self.user.len(), USER_NAME)?;
        at_most("bytes of working directory", self.cwd.as_ref().map_or(0, Vec::len), PATH)?;
        at_most("bytes of terminal name", self.terminal.as_ref().map_or(0, |t| t.term.len()), USER_NAME)?;
        no_nul("arguments", self.argv.iter())?;
        no_nul("working directory", self.cwd.iter())?;
        no_nul("environment", self.env.iter().flat_map(|(name, value)| [name, value]))?;
        if self.env.iter().any(|(name, _)| name.is_empty() || name.contains(&b'=')) {
            return Err(ExecError::EnvName);
        }
        Ok(())
    }
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), ExecError> {
    if count > max { Err(ExecError::TooMany { what, count, max }) } else { Ok(()) }
}

fn no_nul<'a>(what: &'static str, mut strings: impl Iterator<Item = &'a Vec<u8>>) -> Result<(), ExecError> {
    if strings.any(|bytes| bytes.contains(&0)) { Err(ExecError::Nul { what }) } else { Ok(()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Opening,
    Running,
    Done,
    Failed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Opening => "starting",
            Self::Running => "running",
            Self::Done => "over",
            Self::Failed => "refused",
        }
    }
}

/// What the host's rim does next.
#[derive(Debug, PartialEq, Eq)]
pub enum HostStep<'a> {
    /// Nothing; read on.
    Nothing,
    /// The command runs.
    Started(Started),
    /// Write these bytes to our stdout (1) or stderr (2), then say [`Host::written`].
    Output(u16, &'a [u8]),
    /// The guest takes more stdin: [`Host::stdin_room`] has grown.
    StdinRoom,
    /// The command closed its stdin: stop reading ours.
    StdinUnwanted,
    /// The command ended and every byte of its output arrived. Send [`FrameId::BYE`] and close.
    Exited(Exited),
    /// The guest refused, or the command failed on its side.
    Failed(WireError),
}

/// The host's end of an exec.
#[derive(Debug)]
pub struct Host {
    state: State,
    stdin: Sender,
    outputs: [Receiver; 2],
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// The end of an exec, or of an attach, whose request the rim has sent. Stdin may be sent at once.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: State::Opening,
            stdin: Sender::new(STDIN),
            outputs: [Receiver::new(STDOUT), Receiver::new(STDERR)],
        }
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// [`ExecError`]: the guest broke the protocol; the connection cannot go on.
    pub fn receive<'a>(&mut self, frame: Frame<'a>) -> Result<HostStep<'a>, ExecError> {
        match (frame.id, self.state) {
            (FrameId::FAILED, State::Opening | State::Running) => {
                self.state = State::Failed;
                Ok(HostStep::Failed(frame.decode()?))
            }
            (FrameId::EXEC_STARTED, State::Opening) => {
                self.state = State::Running;
                Ok(HostStep::Started(frame.decode()?))
            }
            (FrameId::DATA, State::Running) => {
                let wanted = self.output(frame.id, frame.channel)?.data(frame.payload.len())?;
                Ok(if wanted { HostStep::Output(frame.channel, frame.payload) } else { HostStep::Nothing })
            }
            (FrameId::END, State::Running) => {
                self.output(frame.id, frame.channel)?.end(frame.decode()?)?;
                Ok(HostStep::Nothing)
            }
            (FrameId::CREDIT | FrameId::UNWANTED, State::Opening | State::Running) => {
                if frame.channel != STDIN {
                    return Err(StreamError::NoSuchStream { id: frame.id, channel: frame.channel }.into());
                }
                if frame.id == FrameId::CREDIT {
                    self.stdin.granted(frame.decode()?)?;
                    return Ok(HostStep::StdinRoom);
                }
                self.stdin.refused();
                Ok(HostStep::StdinUnwanted)
            }
            (FrameId::EXEC_EXITED, State::Running) => {
                if !self.outputs.iter().all(Receiver::is_ended) {
                    return Err(ExecError::EarlyExit);
                }
                self.state = State::Done;
                Ok(HostStep::Exited(frame.decode()?))
            }
            (FrameId::UNKNOWN, _) => Ok(HostStep::Nothing),
            (id, state) => Err(ExecError::Unexpected { id, state: state.name() }),
        }
    }

    /// `len` bytes of output were written where they belong; grants the guest as many once it is worth a frame.
    pub fn written(&mut self, channel: u16, len: usize, out: &mut Vec<u8>) {
        if let Ok(output) = self.output(FrameId::DATA, channel) {
            output.taken(len, out);
        }
    }

    /// Our stdout (1) or stderr (2) takes no more (a closed pipe): the guest closes the command's.
    pub fn output_closed(&mut self, channel: u16, out: &mut Vec<u8>) {
        if let Ok(output) = self.output(FrameId::DATA, channel) {
            output.refuse(out);
        }
    }

    /// Bytes of stdin that may be sent in one frame now.
    #[must_use]
    pub fn stdin_room(&self) -> usize {
        self.stdin.room()
    }

    /// Whether stdin's end is still to be said.
    #[must_use]
    pub const fn stdin_open(&self) -> bool {
        self.stdin.is_open()
    }

    /// The header of a stdin frame of `len` bytes; the rim sends the bytes behind it.
    pub fn stdin(&mut self, len: usize) -> Header {
        self.stdin.data(len)
    }

    /// Our stdin ended.
    pub fn stdin_end(&mut self, out: &mut Vec<u8>) {
        self.stdin.end(out);
    }

    /// Sends the command's process group a signal.
    pub fn signal(&self, number: u8, out: &mut Vec<u8>) {
        frame::put(FrameId::EXEC_SIGNAL, &Signal(number), out);
    }

    /// Our terminal's size changed.
    pub fn resize(&self, size: WindowSize, out: &mut Vec<u8>) {
        frame::put(FrameId::EXEC_RESIZE, &size, out);
    }

    /// The connection closed.
    ///
    /// # Errors
    /// [`ExecError::Cut`] unless the command's end, or its failure, had arrived.
    pub const fn closed(&self) -> Result<(), ExecError> {
        match self.state {
            State::Done | State::Failed => Ok(()),
            state => Err(ExecError::Cut { state: state.name() }),
        }
    }

    fn output(&mut self, id: FrameId, channel: u16) -> Result<&mut Receiver, StreamError> {
        match channel {
            STDOUT => Ok(&mut self.outputs[0]),
            STDERR => Ok(&mut self.outputs[1]),
            _ => Err(StreamError::NoSuchStream { id, channel }),
        }
    }
}

/// What the guest's rim does next.
#[derive(Debug, PartialEq, Eq)]
pub enum GuestStep<'a> {
    /// Nothing; read on.
    Nothing,
    /// Write these bytes to the command's stdin, then say [`Guest::stdin_written`].
    Stdin(&'a [u8]),
    /// Close the command's stdin once all before it is written. A terminal gets its end-of-file character.
    StdinEnd,
    /// The host takes more output: [`Guest::room`] has grown.
    OutputRoom(u16),
    /// The host wants no more of this output: close our end of the pipe.
    OutputUnwanted(u16),
    /// Signal the command's process group.
    Signal(u8),
    /// Resize the command's terminal.
    Resize(WindowSize),
    /// Let the command run on; the connection will close.
    Detach,
    /// The host has all it wanted.
    Bye,
}

/// The guest's end of an exec.
#[derive(Debug)]
pub struct Guest {
    state: State,
    stdin: Receiver,
    outputs: [Sender; 2],
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// The end of an exec whose request has arrived.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: State::Opening,
            stdin: Receiver::new(STDIN),
            outputs: [Sender::new(STDOUT), Sender::new(STDERR)],
        }
    }

    /// A frame arrived.
    ///
    /// # Errors
    /// [`ExecError`]: the host broke the protocol; the connection cannot go on.
    pub fn receive<'a>(&mut self, frame: Frame<'a>, out: &mut Vec<u8>) -> Result<GuestStep<'a>, ExecError> {
        match frame.id {
            FrameId::DATA if frame.channel == STDIN => {
                let wanted = self.stdin.data(frame.payload.len())?;
                Ok(if wanted { GuestStep::Stdin(frame.payload) } else { GuestStep::Nothing })
            }
            FrameId::END if frame.channel == STDIN => {
                self.stdin.end(frame.decode()?)?;
                Ok(GuestStep::StdinEnd)
            }
            FrameId::CREDIT => {
                let bytes = frame.decode()?;
                self.output(frame.id, frame.channel)?.granted(bytes)?;
                Ok(GuestStep::OutputRoom(frame.channel))
            }
            FrameId::UNWANTED => {
                self.output(frame.id, frame.channel)?.refused();
                Ok(GuestStep::OutputUnwanted(frame.channel))
            }
            FrameId::EXEC_SIGNAL => {
                let Signal(number) = frame.decode()?;
                Ok(GuestStep::Signal(number))
            }
            FrameId::EXEC_RESIZE => Ok(GuestStep::Resize(frame.decode()?)),
            FrameId::EXEC_DETACH => Ok(GuestStep::Detach),
            FrameId::BYE => Ok(GuestStep::Bye),
            FrameId::DATA | FrameId::END => {
                Err(StreamError::NoSuchStream { id: frame.id, channel: frame.channel }.into())
            }
            FrameId::UNKNOWN => Ok(GuestStep::Nothing),
            id if id.name().is_none() => {
                frame::put(FrameId::UNKNOWN, &crate::error::Unknown { id: id.0 }, out);
                Ok(GuestStep::Nothing)
            }
            id => Err(ExecError::Unexpected { id, state: self.state.name() }),
        }
    }

    /// The command runs.
    pub fn started(&mut self, started: &Started, out: &mut Vec<u8>) {
        self.state = State::Running;
        frame::put(FrameId::EXEC_STARTED, started, out);
    }

    /// The command could not be started, or its worker failed.
    pub fn failed(&mut self, error: &WireError, out: &mut Vec<u8>) {
        self.state = State::Failed;
        frame::put(FrameId::FAILED, error, out);
    }

    /// Bytes of an output that may be sent in one frame now.
    #[must_use]
    pub fn room(&self, channel: u16) -> usize {
        match channel {
            STDOUT => self.outputs[0].room(),
            STDERR => self.outputs[1].room(),
            _ => 0,
        }
    }

    /// The header of an output frame of `len` bytes; the rim sends the bytes behind it.
    ///
    /// # Panics
    /// For a channel that is neither 1 nor 2: our own fault.
    pub fn output_data(&mut self, channel: u16, len: usize) -> Header {
        self.outputs[usize::from(channel - STDOUT)].data(len)
    }

    /// `len` bytes were written to the command's stdin. Nothing is said of it after the command's end.
    pub fn stdin_written(&mut self, len: usize, out: &mut Vec<u8>) {
        if !self.is_done() {
            self.stdin.taken(len, out);
        }
    }

    /// The command closed its stdin. Nothing is said of it after the command's end, which may be the reason.
    pub fn stdin_closed(&mut self, out: &mut Vec<u8>) {
        let mut unsaid = Vec::new();
        self.stdin.refuse(if self.is_done() { &mut unsaid } else { out });
    }

    /// The command ended: says both outputs' ends and then the status. The rim has sent every byte of output before.
    pub fn exited(&mut self, exited: &Exited, out: &mut Vec<u8>) {
        for output in &mut self.outputs {
            output.end(out);
        }
        self.state = State::Done;
        frame::put(FrameId::EXEC_EXITED, exited, out);
    }

    /// Whether the command's end, or its failure, was said.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Failed)
    }

    fn output(&mut self, id: FrameId, channel: u16) -> Result<&mut Sender, StreamError> {
        match channel {
            STDOUT => Ok(&mut self.outputs[0]),
            STDERR => Ok(&mut self.outputs[1]),
            _ => Err(StreamError::NoSuchStream { id, channel }),
        }
    }
}

#[cfg(test)]
mod tests;
