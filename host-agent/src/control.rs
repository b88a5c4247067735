//! A control session of a command's own: a few questions and their answers, on one connection.

use std::time::{Duration, Instant};

use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::info::Info;

use crate::agent::ask::{Answer as AgentAnswer, Ask as AskAgent, Question};
use crate::client::{Client, ClientError};
use crate::connection::{Connection, ConnectionError};

/// How long the agent may take to ask a guest.
const PATIENCE: Duration = Duration::from_secs(6);

/// A control session.
#[derive(Debug)]
pub struct Control {
    connection: Connection,
    next: u64,
}

impl Control {
    /// Opens one with a full handshake and sends these questions with it, numbered from 1.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open(client: &Client, asks: impl IntoIterator<Item = Ask>) -> Result<Self, ClientError> {
        let mut operation = Vec::new();
        frame::put_raw(FrameId::CONTROL, 0, &[], &mut operation);
        let mut next = 1;
        for ask in asks {
            frame::put(FrameId::REQUEST, &Request { number: next, ask }, &mut operation);
            next += 1;
        }
        let (connection, _) = client.greet(&operation)?;
        Ok(Self { connection, next })
    }

    /// Asks one more question and waits for its answer. Events in between are dropped.
    ///
    /// # Errors
    /// [`ClientError`]; the guest's refusal is [`ClientError::Refused`].
    pub fn ask(&mut self, ask: Ask) -> Result<Answer, ClientError> {
        let number = self.next;
        self.next += 1;
        frame::put(FrameId::REQUEST, &Request { number, ask }, self.connection.queue());
        self.connection.flush()?;
        self.answer(number)
    }

    /// Waits for the answer to the question of this number.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn answer(&mut self, number: u64) -> Result<Answer, ClientError> {
        loop {
            if let Incoming::Reply(reply) = self.incoming()?
                && reply.number == number
            {
                return reply.answer.map_err(ClientError::Refused);
            }
        }
    }

    /// Until when further waiting may last.
    pub const fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.connection.set_deadline(deadline);
    }

    /// Waits for the next reply or event.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn incoming(&mut self) -> Result<Incoming, ClientError> {
        loop {
            let frame = self.connection.frame()?;
            match frame.id {
                FrameId::REPLY => return Ok(Incoming::Reply(frame.decode()?)),
                // An event that this release does not know says nothing to it.
                FrameId::EVENT => {
                    if let Ok(event) = frame.decode() {
                        return Ok(Incoming::Event(event));
                    }
                }
                FrameId::FAILED => return Err(ClientError::Refused(frame.decode::<WireError>()?)),
                FrameId::UNKNOWN => {
                    let error =
                        WireError::new(ErrorKind::UNSUPPORTED, "The guest tools do not know this request");
                    return Err(ClientError::Refused(error.hint("Upgrade hospes-tools in the guest")));
                }
                id if id.name().is_none() => (),
                id => return Err(ClientError::Protocol(format!("it sent {id} in a control session"))),
            }
        }
    }
}

/// What a guest says in a control session.
#[derive(Debug)]
pub enum Incoming {
    /// The answer to a question.
    Reply(Reply),
    /// Something changed.
    Event(Event),
}

/// Asks one question: the whole of most commands.
///
/// # Errors
/// As [`Control::ask`]; a guest that takes too long is [`ConnectionError::TimedOut`].
pub fn ask(client: &Client, ask: Ask) -> Result<Answer, ClientError> {
    let mut control = Control::open(client, [ask])?;
    control.set_deadline(Some(Instant::now() + client.patience()));
    control.answer(1)
}

/// Guest information as it is now, from the agent's session where there is one.
///
/// # Errors
/// [`ClientError`].
pub fn info(client: &Client) -> Result<Info, ClientError> {
    let question = Question::Info { vm: client.vm().name.clone() };
    if let Ok(AgentAnswer::Info(info)) = AskAgent::once(&question, PATIENCE) {
        return Ok(*info);
    }
    match ask(client, Ask::Info)? {
        Answer::Info(info) => Ok(*info),
        _ => Err(ClientError::Protocol("it answered another question".to_owned())),
    }
}

/// Waits, without end or until `deadline`, for guest information of which `wanted` makes something.
///
/// # Errors
/// [`ClientError`]; the deadline is [`ConnectionError::TimedOut`].
pub fn info_until<T>(
    client: &Client,
    deadline: Option<Instant>,
    mut wanted: impl FnMut(&Info) -> Option<T>,
) -> Result<T, ClientError> {
    let mut control = Control::open(client, [Ask::Subscribe, Ask::Info])?;
    control.set_deadline(deadline);
    loop {
        let info = match control.incoming()? {
            Incoming::Reply(Reply { answer: Ok(Answer::Info(info)), .. })
            | Incoming::Event(Event::Info(info)) => info,
            Incoming::Event(Event::Stopping(_)) => {
                return Err(ConnectionError::Closed { inside_frame: false }.into());
            }
            _ => continue,
        };
        if let Some(found) = wanted(&info) {
            return Ok(found);
        }
    }
}
