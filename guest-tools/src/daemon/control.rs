//! A control session: requests in, replies and events out.
//!
//! Nothing is stored for a host that does not read: while a frame waits to leave, no request is taken, and a host that
//! takes nothing for [`WRITE`] is disconnected.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::{ErrorKind, Unknown, WireError};
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::handshake::Session;
use hospes_protocol::keys::PublicKey;
use hospes_protocol::power::Power;
use hospes_protocol::variable::Owner;
use tokio::sync::oneshot;
use tokio::time;

use super::sessions::Revoked;
use super::transport::Stream;
use super::{Daemon, PowerAnswer};
use crate::audit;
use crate::info::{self, Monitor};
use crate::verb::Verb;

/// How long one write may take.
const WRITE: Duration = Duration::from_secs(10);

/// Serves a control session to its end. `due` is sent first.
pub(super) async fn serve(
    daemon: &Arc<Daemon>,
    stream: &Stream,
    buffer: FrameBuffer,
    due: Vec<u8>,
    session: Session,
) {
    let max = daemon.config().limits.sessions;
    let opened = daemon.sessions().open(&session, max);
    let mut control = Control {
        daemon,
        stream,
        host: session.peer,
        buffer,
        out: due,
        monitor: None,
        power: None,
        leaving: None,
        changes: 0,
    };
    let revoked = match opened {
        Ok(revoked) => revoked,
        Err(error) => {
            daemon.refused(&session.peer.fingerprint(), &error.message);
            return control.part(&error).await;
        }
    };
    audit::noted(&session.peer, "opened a control session");
    daemon.write_status();
    let end = control.run(revoked).await;
    daemon.sessions().close(session.id);
    daemon.write_status();
    audit::noted(&session.peer, "ended its control session");
    if let Err(End::Fault(error)) = end {
        daemon.refused(&session.peer.fingerprint(), &error.message);
        control.part(&error).await;
    }
}

enum End {
    /// The host left, or was left because it reads nothing.
    Gone,
    /// The host is told why it ends.
    Fault(WireError),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

enum Happened {
    Read(usize),
    Powered(u64, PowerAnswer),
    Variables,
    Resumed,
    Desktop(Option<String>),
    Changed(Box<hospes_protocol::info::Info>),
    Stopping(&'static str),
    Revoked(WireError),
}

struct Control<'a> {
    daemon: &'a Arc<Daemon>,
    stream: &'a Stream,
    buffer: FrameBuffer,
    out: Vec<u8>,
    host: PublicKey,
    /// There once the host has subscribed.
    monitor: Option<Monitor>,
    /// The number of a power request that is under way, and its answer to come.
    power: Option<(u64, oneshot::Receiver<PowerAnswer>)>,
    /// Told when the answer to it has left.
    leaving: Option<oneshot::Sender<()>>,
    /// The last change of a variable that the host was told of.
    changes: u64,
}

impl Control<'_> {
    async fn run(&mut self, mut revoked: Revoked) -> Result<(), End> {
        let mut stopping = self.daemon.stopping();
        let mut resumed = self.daemon.resumed.subscribe();
        let mut variables = self.daemon.variables().subscribe();
        let mut desktop = self.daemon.desktops.subscribe();
        loop {
            while let Some(ended) = self.take()? {
                if ended {
                    return Ok(());
                }
                self.flush().await?;
            }
            self.flush().await?;
            let happened = tokio::select! {
                read = self.stream.read(self.buffer.space()) => Happened::Read(read?),
                info = changed(&mut self.monitor) => Happened::Changed(info),
                Ok(error) = &mut revoked => Happened::Revoked(error),
                (number, answer) = powered(&mut self.power) => Happened::Powered(number, answer),
                Ok(()) = variables.changed(), if self.monitor.is_some() => Happened::Variables,
                Ok(()) = resumed.changed(), if self.monitor.is_some() => Happened::Resumed,
                Ok(user) = desktop.changed(), if self.monitor.is_some() => Happened::Desktop(user),
                Ok(()) = stopping.changed() => Happened::Stopping(*stopping.borrow_and_update()),
            };
            match happened {
                Happened::Read(0) => return Err(End::Gone),
                Happened::Read(n) => self.buffer.filled(n),
                Happened::Changed(info) => frame::put(FrameId::EVENT, &Event::Info(info), &mut self.out),
                Happened::Stopping(why) => {
                    frame::put(FrameId::EVENT, &Event::Stopping(why.into()), &mut self.out);
                    // After a suspend the session may be there still.
                    if why != "suspend" {
                        return self.flush().await;
                    }
                }
                Happened::Powered(number, PowerAnswer { reply, sent }) => {
                    frame::put(FrameId::REPLY, &Reply { number, answer: reply }, &mut self.out);
                    self.leaving = Some(sent);
                }
                Happened::Variables => {
                    let seen = std::mem::replace(&mut self.changes, *variables.borrow_and_update());
                    for name in self.daemon.variables().changed_since(seen) {
                        frame::put(FrameId::EVENT, &Event::Variable(name), &mut self.out);
                    }
                }
                // What the policy does not allow, nobody need know of.
                Happened::Desktop(_) if !self.daemon.config().verbs.allows(Verb::Clipboard) => (),
                Happened::Desktop(user) => {
                    frame::put(FrameId::EVENT, &Event::Desktop(user), &mut self.out);
                }
                Happened::Resumed => frame::put(FrameId::EVENT, &Event::Resumed, &mut self.out),
                Happened::Revoked(error) => return Err(End::Fault(error)),
            }
        }
    }

    /// Answers one frame from the buffer: `Some(true)` where it was the last, `None` where none is whole.
    fn take(&mut self) -> Result<Option<bool>, End> {
        let fault = |error: &dyn std::fmt::Display| End::Fault(WireError::protocol(error));
        let Some(frame) = self.buffer.take().map_err(|error| fault(&error))? else { return Ok(None) };
        match frame.id {
            FrameId::REQUEST => {
                let reply = match frame.decode::<Request>() {
                    Ok(Request { number, ask: Ask::Power(power) }) => {
                        match begin_power(self.daemon, &self.host, power, self.power.is_some()) {
                            Ok(answer) => {
                                self.power = Some((number, answer));
                                return Ok(Some(false));
                            }
                            Err(error) => Reply { number, answer: Err(error) },
                        }
                    }
                    Ok(Request { number, ask }) => {
                        if ask == Ask::Subscribe && self.monitor.is_none() {
                            self.changes = *self.daemon.variables().subscribe().borrow();
                        }
                        Reply { number, answer: answer(self.daemon, &self.host, &mut self.monitor, ask) }
                    }
                    // An ask of a later release: its number still decodes, and is answered.
                    Err(error) => match codec::decode_first::<u64>(frame.payload) {
                        Ok(number) => Reply { number, answer: Err(unsupported()) },
                        Err(_) => return Err(fault(&error)),
                    },
                };
                frame::put(FrameId::REPLY, &reply, &mut self.out);
            }
            FrameId::BYE => return Ok(Some(true)),
            FrameId::UNKNOWN => {}
            id if id.name().is_none() => frame::put(FrameId::UNKNOWN, &Unknown { id: id.0 }, &mut self.out),
            id => return Err(fault(&format!("{id} is out of place in a control session"))),
        }
        Ok(Some(false))
    }

    async fn flush(&mut self) -> Result<(), End> {
        if !self.out.is_empty() {
            let written = time::timeout(WRITE, self.stream.write_all(&self.out)).await;
            written.map_err(|_| End::Gone)??;
            self.out.clear();
        }
        drop(self.leaving.take());
        Ok(())
    }

    async fn part(&mut self, error: &WireError) {
        frame::put(FrameId::FAILED, error, &mut self.out);
        let _ = self.flush().await;
    }
}

/// What each request does: the one place where control requests are dispatched.
fn answer(
    daemon: &Daemon,
    host: &PublicKey,
    monitor: &mut Option<Monitor>,
    ask: Ask,
) -> Result<Answer, WireError> {
    match ask {
        Ask::Ping => Ok(Answer::Pong),
        Ask::Info => {
            allowed(daemon, Verb::Info)?;
            Ok(Answer::Info(Box::new(info::collect())))
        }
        Ask::Subscribe => {
            allowed(daemon, Verb::Info)?;
            if monitor.is_none() {
                let opened = Monitor::open().map_err(|error| {
                    WireError::new(ErrorKind::OS, format!("The guest cannot watch itself: {error}"))
                })?;
                *monitor = Some(opened);
            }
            Ok(Answer::Done)
        }
        Ask::VariableList => {
            allowed(daemon, Verb::Variables)?;
            Ok(Answer::Variables(daemon.variables().list()))
        }
        Ask::VariableGet { name } => {
            allowed(daemon, Verb::Variables)?;
            daemon.variables().get(&name, Owner::Host).map(Answer::Variable)
        }
        Ask::VariableSet(variable) => {
            allowed(daemon, Verb::Variables)?;
            let kind = if variable.secret { "secret " } else { "" };
            let subject = format!("set {kind}{} ({} bytes)", variable.name, variable.value.len());
            audit::allowed(host, Verb::Variables, "root", subject.as_bytes());
            daemon.variables().set(variable, Owner::Host).map(|()| Answer::Done)
        }
        Ask::VariableRemove { name } => {
            allowed(daemon, Verb::Variables)?;
            audit::allowed(host, Verb::Variables, "root", format!("unset {name}").as_bytes());
            daemon.variables().remove(&name, Owner::Host).map(|()| Answer::Done)
        }
        // Begun elsewhere, for it takes its time.
        Ask::Power(_) => Err(unsupported()),
        Ask::Freeze(_) | Ask::Thaw(_) | Ask::Trim(_) => {
            let message = "Freeze, thaw and trim come alone on a connection of their own";
            Err(WireError::new(ErrorKind::UNSUPPORTED, message))
        }
    }
}

/// Begins what takes its time, on a task of its own: it goes on if the host leaves.
fn begin_power(
    daemon: &Arc<Daemon>,
    host: &PublicKey,
    power: Power,
    busy: bool,
) -> Result<oneshot::Receiver<PowerAnswer>, WireError> {
    allowed(daemon, Verb::Power)?;
    if let Some(frozen) = daemon.freezes.busy() {
        return Err(frozen);
    }
    if busy {
        let error = WireError::new(ErrorKind::BUSY, "This session's last power request is not answered yet");
        return Err(error.hint("Wait for it, or force on a connection of its own"));
    }
    let subject = format!("{}{}", power.action.word(), if power.force { ", forced" } else { "" });
    audit::allowed(host, Verb::Power, "root", subject.as_bytes());
    let (answer, answered) = oneshot::channel();
    tokio::spawn(Arc::clone(daemon).power(power, answer));
    Ok(answered)
}

/// Answers a request that came alone, into `due`. Where the guest goes down for it, what comes back is to be dropped
/// when the answer has left.
///
/// # Errors
/// What is no request: the host is at fault.
pub(super) async fn alone(
    daemon: &Arc<Daemon>,
    stream: &Stream,
    due: &mut Vec<u8>,
    payload: &[u8],
    host: PublicKey,
) -> Result<Option<oneshot::Sender<()>>, WireError> {
    let mut going = None;
    let reply = match codec::decode::<Request>(payload) {
        Ok(Request { number, ask: Ask::Subscribe }) => {
            let error = WireError::new(ErrorKind::UNSUPPORTED, "Events come in a control session");
            Reply { number, answer: Err(error) }
        }
        Ok(Request { number, ask: ask @ (Ask::Freeze(_) | Ask::Thaw(_) | Ask::Trim(_)) }) => {
            go_ahead(stream, due).await;
            Reply { number, answer: super::freeze::answer(daemon, &host, ask).await }
        }
        Ok(Request { number, ask: Ask::Power(power) }) => {
            let answer = match begin_power(daemon, &host, power, false) {
                Ok(answered) => {
                    go_ahead(stream, due).await;
                    match answered.await {
                        Ok(PowerAnswer { reply, sent }) => {
                            if matches!(&reply, Ok(Answer::Power(done)) if done.refused.is_none()) {
                                going = Some(sent);
                            }
                            reply
                        }
                        Err(_) => Err(lost()),
                    }
                }
                Err(error) => Err(error),
            };
            Reply { number, answer }
        }
        Ok(Request { number, ask }) => Reply { number, answer: answer(daemon, &host, &mut None, ask) },
        Err(error) => match codec::decode_first::<u64>(payload) {
            Ok(number) => Reply { number, answer: Err(unsupported()) },
            Err(_) => return Err(WireError::protocol(error)),
        },
    };
    frame::put(FrameId::REPLY, &reply, due);
    Ok(going)
}

/// Tells that the connection is open, before scripts take their time.
async fn go_ahead(stream: &Stream, due: &mut Vec<u8>) {
    if time::timeout(WRITE, stream.write_all(due)).await.is_ok_and(|written| written.is_ok()) {
        due.clear();
    }
}

pub(super) fn lost() -> WireError {
    WireError::new(ErrorKind::OTHER, "The guest tools lost the request")
}

pub(super) fn unsupported() -> WireError {
    WireError::new(ErrorKind::UNSUPPORTED, "The guest tools do not know this request")
        .hint("Upgrade hospes-tools in the guest")
}

pub(super) fn allowed(daemon: &Daemon, verb: Verb) -> Result<(), WireError> {
    if daemon.config().verbs.allows(verb) {
        return Ok(());
    }
    let message = format!("The guest's policy does not allow {verb}");
    let hint = format!("In the guest: [verbs] {verb} in /etc/hospes/tools.toml");
    Err(WireError::new(ErrorKind::FORBIDDEN, message).hint(hint))
}

/// The answer to a power request; for ever none where none is under way.
async fn powered(power: &mut Option<(u64, oneshot::Receiver<PowerAnswer>)>) -> (u64, PowerAnswer) {
    let Some((number, answer)) = power else { return std::future::pending().await };
    let (number, answered) = (*number, answer.await);
    *power = None;
    let answer = answered.unwrap_or_else(|_| PowerAnswer { reply: Err(lost()), sent: oneshot::channel().0 });
    (number, answer)
}

async fn changed(monitor: &mut Option<Monitor>) -> Box<hospes_protocol::info::Info> {
    match monitor {
        Some(monitor) => monitor.changed().await,
        None => std::future::pending().await,
    }
}
