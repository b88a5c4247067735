//! How a command asks the agent: one line of JSON each way on the agent's socket (`hospes events` gets a line for each
//! event after its answer).
//!
//! The agent only ever helps: where it is not there, does not answer at once, or speaks of something else, a command
//! goes on without it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hospes_protocol::handshake::SessionId;
use hospes_protocol::hex;
use hospes_protocol::info::Info;
use hospes_protocol::ticket::{Opened, Ticket};
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::endpoint::Endpoint;
use crate::endpoint::wait_readable;
use crate::vm::{Vm, VmName};

/// How long a command waits for an agent that took its question.
const PATIENCE: Duration = Duration::from_millis(500);

/// Bytes in a line of either side.
pub const LINE_LEN: u64 = 8 * 1024 * 1024;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// A ticket for one connection to a VM. The endpoint is the one the command will dial: a ticket for another
    /// machine would be of no use.
    Ticket {
        /// The VM.
        vm: VmName,
        /// Where the command dials.
        endpoint: Endpoint,
    },
    /// Every VM's status, and who announced itself.
    List,
    /// Guest information as it is now.
    Info {
        /// The VM.
        vm: VmName,
    },
    /// Every event from now on, one line each, until the connection closes.
    Events,
    /// The agent's own log of a VM, or of all.
    Log {
        /// The VM.
        vm: Option<VmName>,
        /// Go on with each new line until the connection closes.
        follow: bool,
    },
    /// Try to connect now whatever the back-off says; a VM that is connected is asked whether it is still there.
    Retry {
        /// The VM.
        vm: VmName,
    },
    /// Read the VMs' files now: for systems where nothing tells of a file's change.
    Reload,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Question::Ticket`].
    Ticket(TicketText),
    /// To [`Question::List`].
    List(Listing),
    /// To [`Question::Info`].
    Info(Box<Info>),
    /// To [`Question::Events`], before the events, and to what needs no more of an answer.
    Done,
    /// To [`Question::Log`], and each line after.
    Log(Vec<LogLine>),
    /// The agent cannot, and why.
    Error(String),
}

/// What `hospes list` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// The VMs that were added.
    pub vms: Vec<VmStatus>,
    /// Guests that announced themselves and were not added.
    pub announced: Vec<Announced>,
}

/// A VM's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub name: VmName,
    /// Where it is reached; none where its file cannot be read.
    pub endpoint: Option<Endpoint>,
    /// How it is.
    pub state: State,
    /// Since when, in seconds since 1970; none where it was asked just now.
    pub since: Option<u64>,
    /// Why it is not connected, and what to do.
    pub error: Option<Told>,
    /// Its key's fingerprint, once known.
    pub fingerprint: Option<String>,
    /// What it last said of itself.
    pub info: Option<Box<Info>>,
}

/// How a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The guest tools answer.
    Connected,
    /// The first attempt is under way.
    Connecting,
    /// Nothing answers; tried again when something changes, and now and then.
    Unreachable,
    /// It answers and something forbids it: a key, a policy. Tried again when somebody asks.
    Refused,
}

impl State {
    /// The word that people are shown.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
        }
    }
}

/// An error as people are told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What happened.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A guest that announced itself. Everything here but the endpoint is its own word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Where it may be reached.
    pub endpoint: Endpoint,
    /// Its host name.
    pub hostname: String,
    /// The fingerprint of the key it says it has.
    pub fingerprint: String,
    /// When, in seconds since 1970.
    pub at: u64,
}

/// An event, as a line of `hospes events --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Which VM; none for an announcement.
    pub vm: Option<VmName>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A VM's file appeared.
    Added {
        /// Where it is reached.
        endpoint: Endpoint,
    },
    /// A VM's file is gone.
    Removed,
    /// The guest tools answer.
    Connected {
        /// The guest's key.
        fingerprint: String,
        /// Whether it was pinned just now.
        first_use: bool,
    },
    /// The connection is gone.
    Disconnected {
        /// Why.
        error: Told,
    },
    /// The guest refuses us, or we it.
    Refused {
        /// Why.
        error: Told,
    },
    /// The guest's information changed.
    Info {
        /// As it is now.
        info: Box<Info>,
    },
    /// The reader of events was too slow, and so many are lost to it.
    Missed {
        /// How many.
        count: u64,
    },
    /// The guest is about to stop.
    Stopping {
        /// Why, in one word: `poweroff`, `reboot`, `halt`, `suspend`, `upgrade`.
        why: String,
    },
    /// The guest goes down and comes up again.
    Rebooting,
    /// The guest is down: it had said that it goes, and nothing answers any more, or its VMM says so.
    Stopped {
        /// Why, as in [`What::Stopping`]; `unknown` where it had not said so.
        why: String,
    },
    /// The guest goes on from where it was before, in the same boot: from a snapshot, or a saved machine.
    Restored,
    /// The guest came back from suspend.
    Resumed,
    /// The machine was paused.
    Paused,
    /// The machine goes on.
    Unpaused,
    /// The guest's clock was set by this machine's.
    ClockSet {
        /// By so many nanoseconds.
        by_ns: i64,
        /// Why it was looked at.
        why: String,
    },
    /// A variable of the guest's changed or went.
    Variable {
        /// Its name.
        name: String,
    },
    /// A guest that was not added announced itself.
    Announced {
        /// The guest.
        guest: Announced,
    },
}

/// A line of the agent's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Which VM, where it is about one.
    pub vm: Option<VmName>,
    /// What happened.
    pub text: String,
}

/// A ticket as a line has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketText {
    session: String,
    serial: u64,
    mac: String,
    opened: String,
}

/// A ticket, with the answer that its guest must give.
#[derive(Debug, Clone)]
pub struct IssuedTicket {
    /// What the guest is shown.
    pub ticket: Ticket,
    /// What the guest must answer.
    pub opened: Opened,
}

impl From<&IssuedTicket> for TicketText {
    fn from(issued: &IssuedTicket) -> Self {
        let IssuedTicket { ticket, opened } = issued;
        Self {
            session: hex::encode(&ticket.session.0),
            serial: ticket.serial,
            mac: hex::encode(&ticket.mac),
            opened: hex::encode(&opened.mac),
        }
    }
}

impl TicketText {
    fn parse(&self) -> Option<IssuedTicket> {
        Some(IssuedTicket {
            ticket: Ticket {
                session: SessionId(hex::decode(&self.session)?),
                serial: self.serial,
                mac: hex::decode(&self.mac)?,
            },
            opened: Opened { mac: hex::decode(&self.opened)? },
        })
    }
}

/// A question under way.
#[derive(Debug)]
pub struct Ask {
    lines: BufReader<UnixStream>,
}

impl Ask {
    /// Asks for a ticket; none where there is no agent.
    #[must_use]
    pub fn ticket(vm: &Vm) -> Option<Self> {
        Self::send(&Question::Ticket { vm: vm.name.clone(), endpoint: vm.spec.endpoint.clone() }).ok()
    }

    /// The ticket, or none where the agent has none for us or does not answer at once.
    #[must_use]
    pub fn answer(mut self) -> Option<IssuedTicket> {
        match self.next(Some(Instant::now() + PATIENCE)) {
            Ok(Some(Answer::Ticket(text))) => text.parse(),
            _ => None,
        }
    }

    /// Sends a question to the user's agent.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` where there is no agent, and the operating system's.
    pub fn send(question: &Question) -> io::Result<Self> {
        let path = dirs::agent_socket().map_err(io::Error::other)?;
        Self::send_to(&path, question)
    }

    fn send_to(path: &Path, question: &Question) -> io::Result<Self> {
        let mut stream = UnixStream::connect(path)?;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(Self { lines: BufReader::with_capacity(1024, stream) })
    }

    /// The next line: the answer first, then what follows it. None at the end.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, `InvalidData` for a line that is no answer, and the operating system's.
    pub fn next<T: for<'de> Deserialize<'de>>(&mut self, deadline: Option<Instant>) -> io::Result<Option<T>> {
        use std::os::fd::AsFd;
        let mut line = Vec::new();
        loop {
            if self.lines.buffer().is_empty() {
                wait_readable(self.lines.get_ref().as_fd(), deadline)?;
            }
            let bytes = self.lines.fill_buf()?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let take = end.map_or(bytes.len(), |at| at + 1);
            line.extend_from_slice(&bytes[..take]);
            self.lines.consume(take);
            if end.is_some() {
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if line.len() as u64 > LINE_LEN {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }

    /// Tells the agent something, where there is one.
    pub fn tell(question: &Question) {
        let _ = Self::once(question, PATIENCE);
    }

    /// Asks one question and waits for its one answer.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`next`](Self::next).
    pub fn once(question: &Question, patience: Duration) -> io::Result<Answer> {
        let deadline = Instant::now() + patience;
        Self::send(question)?.next(Some(deadline))?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
