//! Opens one connection to a guest for one operation.
//!
//! With the agent's ticket the operation goes out with the first bytes. Without, the whole handshake takes one round
//! trip, and the operation goes out with our proof, after the guest's proof was held against its pin. Either way the
//! caller gets the connection once the guest has shown who it is.

use std::io;
use std::time::{Duration, Instant};

use hospes_protocol::codec::CodecError;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::handshake::{Entropy, HandshakeError, Host, Ready, Session};
use hospes_protocol::limits::HANDSHAKE_MS;
use hospes_protocol::ticket::Opened;
use hospes_protocol::version::Capabilities;

use crate::agent::ask::{Ask, IssuedTicket, Question};
use crate::connection::{Connection, ConnectionError, ExpectError};
use crate::endpoint::{DialError, Stream};
use crate::identity::{self, IdentityError};
use crate::pins::{Pin, PinError, Pins, Verdict};
use crate::vm::Vm;

/// How long a guest may take from the first byte to its proof, unless the caller says otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(HANDSHAKE_MS);

/// What this release of the host can do.
pub const CAPABILITIES: Capabilities = Capabilities(u64::MAX);

/// Why no connection could be opened.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The guest sent something else than it had to.
    #[error("The guest broke the protocol: {0}")]
    Protocol(String),
    /// The guest's proof does not hold.
    #[error("The guest's proof does not hold: {0}")]
    Handshake(#[from] HandshakeError),
    /// The guest is not the one we know.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Our own key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The guest refused, in its own words.
    #[error("{}", crate::printable::line(&.0.message))]
    Refused(WireError),
    /// The guest does not hold the secret of the agent's session.
    #[error("What answers at the VM's endpoint is not the guest that the agent knows")]
    Impostor,
}

impl ClientError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dial(error) => error.hint(),
            Self::Pin(error) => error.hint(),
            Self::Identity(error) => error.hint(),
            Self::Refused(error) if error.hint.is_empty() => None,
            Self::Refused(error) => Some(crate::printable::line(&error.hint).into_owned()),
            Self::Impostor => {
                Some("If the VM was just recreated, try again: the agent notices it".to_owned())
            }
            Self::Connection(ConnectionError::TimedOut) => {
                Some("The guest may be paused or overloaded: --connect-timeout waits longer".to_owned())
            }
            Self::Handshake(_) | Self::Protocol(_) => {
                Some("Something else than hospes-tools may be listening in the guest".to_owned())
            }
            Self::Connection(_) => None,
        }
    }

    /// Whether it may well be otherwise in a moment, as while a VM boots.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Dial(error) => error.may_pass(),
            Self::Connection(error) => !matches!(error, ConnectionError::Frame(_)),
            Self::Refused(error) => matches!(error.kind, ErrorKind::BUSY | ErrorKind::LIMIT),
            Self::Protocol(_) | Self::Handshake(_) | Self::Pin(_) | Self::Identity(_) | Self::Impostor => {
                false
            }
        }
    }
}

impl From<ExpectError> for ClientError {
    fn from(error: ExpectError) -> Self {
        match error {
            ExpectError::Connection(error) => Self::Connection(error),
            ExpectError::Failed(error) => Self::Refused(error),
            ExpectError::Other { found, expected } => {
                Self::Protocol(format!("it sent {found} where {expected} had to come"))
            }
            ExpectError::Codec(error) => Self::Protocol(error.to_string()),
        }
    }
}

impl From<CodecError> for ClientError {
    fn from(error: CodecError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// How to reach one VM.
#[derive(Debug, Clone)]
pub struct Client {
    vm: Vm,
    timeout: Duration,
    ask_agent: bool,
}

/// What a full handshake told.
#[derive(Debug)]
pub struct Greeting {
    /// The session; its tickets open further connections.
    pub session: Session,
    /// How the guest compared with its pin.
    pub verdict: Verdict,
    /// The guest's answer.
    pub ready: Ready,
}

impl Client {
    /// A client of `vm` that asks the agent for tickets.
    #[must_use]
    pub const fn new(vm: Vm) -> Self {
        Self { vm, timeout: CONNECT_TIMEOUT, ask_agent: true }
    }

    /// How long a connection may take from dialling to the guest's proof.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A client that does every handshake itself, as the agent must.
    #[must_use]
    pub const fn without_agent(mut self) -> Self {
        self.ask_agent = false;
        self
    }

    /// How long a connection may take.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        self.timeout
    }

    /// The guest user of a request: the one that is named, or the VM's, or the guest's own choice.
    #[must_use]
    pub fn user(&self, named: Option<String>) -> String {
        named.or_else(|| self.vm.spec.user.clone()).unwrap_or_default()
    }

    /// The VM.
    #[must_use]
    pub const fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Opens a connection whose first operation is `operation`: one or more whole frames, such as `EXEC`. The frames
    /// that come back next are the operation's.
    ///
    /// # Errors
    /// [`ClientError`]. A guest that refuses the operation itself says so in the frames that follow.
    pub fn open(&self, operation: &[u8]) -> Result<Connection, ClientError> {
        self.open_told(operation).map(|(connection, _)| connection)
    }

    /// As [`open`](Self::open), with what the handshake told where there was one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open_told(&self, operation: &[u8]) -> Result<(Connection, Option<Greeting>), ClientError> {
        let deadline = Instant::now() + self.timeout;
        // The agent makes the ticket while we connect.
        let ask = if self.ask_agent { Ask::ticket(&self.vm) } else { None };
        let stream = self.vm.spec.endpoint.dial(self.timeout)?;
        if let Some(ticket) = ask.and_then(Ask::answer) {
            match self.present(stream, &ticket, operation, deadline) {
                // The guest's daemon restarted and the agent has not noticed yet. Nothing was done.
                Err(ClientError::Refused(error)) if error.kind == ErrorKind::STALE_TICKET => {
                    Ask::tell(&Question::Retry { vm: self.vm.name.clone() });
                }
                result => return result.map(|connection| (connection, None)),
            }
            let stream = self.vm.spec.endpoint.dial(self.timeout)?;
            return self.shake_hands(stream, operation, deadline);
        }
        self.shake_hands(stream, operation, deadline)
    }

    /// Opens a connection with a full handshake.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn greet(&self, operation: &[u8]) -> Result<(Connection, Greeting), ClientError> {
        let deadline = Instant::now() + self.timeout;
        let stream = self.vm.spec.endpoint.dial(self.timeout)?;
        let (connection, greeting) = self.shake_hands(stream, operation, deadline)?;
        let greeting = greeting.ok_or_else(|| ClientError::Protocol("no greeting".to_owned()))?;
        Ok((connection, greeting))
    }

    fn present(
        &self,
        stream: Stream,
        issued: &IssuedTicket,
        operation: &[u8],
        deadline: Instant,
    ) -> Result<Connection, ClientError> {
        let mut connection = Connection::new(stream);
        connection.set_deadline(Some(deadline));
        frame::put(FrameId::TICKET, &issued.ticket, connection.queue());
        connection.queue().extend_from_slice(operation);
        flush(&mut connection)?;
        let answer: Opened = connection.expect(FrameId::OPENED)?.decode()?;
        if !issued.opened.matches(&answer) {
            return Err(ClientError::Impostor);
        }
        connection.set_deadline(None);
        Ok(connection)
    }

    fn shake_hands(
        &self,
        stream: Stream,
        operation: &[u8],
        deadline: Instant,
    ) -> Result<(Connection, Option<Greeting>), ClientError> {
        let key = identity::load_or_create()?;
        let entropy = Entropy {
            share: identity::random().map_err(IdentityError::from)?,
            nonce: identity::random().map_err(IdentityError::from)?,
            session: [0; 16],
        };
        let mut connection = Connection::new(stream);
        connection.set_deadline(Some(deadline));
        let host = Host::start(&key, CAPABILITIES, &entropy, connection.queue());
        flush(&mut connection)?;
        let hello = connection.expect(FrameId::SERVER_HELLO)?.payload.to_vec();
        let session = host.finish(&hello, connection.queue())?;
        // Our proof is only queued: a guest that is not the one we know gets neither it nor the operation.
        let pin = Pin { key: session.peer, machine: session.machine };
        let verdict = Pins::open()?.check(&self.vm.name, pin)?;
        connection.queue().extend_from_slice(operation);
        flush(&mut connection)?;
        let ready: Ready = connection.expect(FrameId::READY)?.decode()?;
        connection.set_deadline(None);
        Ok((connection, Some(Greeting { session, verdict, ready })))
    }
}

/// Sends the queue. A guest that has closed by now may have said why: that is read before the write's failure counts.
fn flush(connection: &mut Connection) -> Result<(), ClientError> {
    match connection.flush() {
        Err(ConnectionError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
