//! A control session: requests in, replies and events out.
//!
//! Nothing is stored for a host that does not read: while a frame waits to leave, no request is taken, and a host that
//! takes nothing for [`WRITE`] is disconnected.

use std::io;
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::{ErrorKind, Unknown, WireError};
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::handshake::Session;
use tokio::time;

use super::Daemon;
use super::sessions::Revoked;
use super::transport::Stream;
use crate::audit;
use crate::info::{self, Monitor};
use crate::verb::Verb;

/// How long one write may take.
const WRITE: Duration = Duration::from_secs(10);

/// Serves a control session to its end. `due` is sent first.
pub(super) async fn serve(
    daemon: &Daemon,
    stream: &Stream,
    buffer: FrameBuffer,
    due: Vec<u8>,
    session: Session,
) {
    let max = daemon.config().limits.sessions;
    let opened = daemon.sessions().open(&session, max);
    let mut control = Control { daemon, stream, buffer, out: due, monitor: None };
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
    Changed(Box<hospes_protocol::info::Info>),
    Stopping(&'static str),
    Revoked(WireError),
}

struct Control<'a> {
    daemon: &'a Daemon,
    stream: &'a Stream,
    buffer: FrameBuffer,
    out: Vec<u8>,
    /// There once the host has subscribed.
    monitor: Option<Monitor>,
}

impl Control<'_> {
    async fn run(&mut self, mut revoked: Revoked) -> Result<(), End> {
        let mut stopping = self.daemon.stopping();
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
                Ok(()) = stopping.changed() => Happened::Stopping(*stopping.borrow_and_update()),
            };
            match happened {
                Happened::Read(0) => return Err(End::Gone),
                Happened::Read(n) => self.buffer.filled(n),
                Happened::Changed(info) => frame::put(FrameId::EVENT, &Event::Info(info), &mut self.out),
                Happened::Stopping(why) => {
                    frame::put(FrameId::EVENT, &Event::Stopping(why.into()), &mut self.out);
                    return self.flush().await;
                }
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
                    Ok(Request { number, ask }) => {
                        Reply { number, answer: answer(self.daemon, &mut self.monitor, &ask) }
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
        Ok(())
    }

    async fn part(&mut self, error: &WireError) {
        frame::put(FrameId::FAILED, error, &mut self.out);
        let _ = self.flush().await;
    }
}

/// What each request does: the one place where control requests are dispatched.
fn answer(daemon: &Daemon, monitor: &mut Option<Monitor>, ask: &Ask) -> Result<Answer, WireError> {
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
        _ => Err(unsupported()),
    }
}

fn unsupported() -> WireError {
    WireError::new(ErrorKind::UNSUPPORTED, "The guest tools do not know this request")
        .hint("Upgrade hospes-tools in the guest")
}

fn allowed(daemon: &Daemon, verb: Verb) -> Result<(), WireError> {
    if daemon.config().verbs.allows(verb) {
        return Ok(());
    }
    let message = format!("The guest's policy does not allow {verb}");
    let hint = format!("In the guest: [verbs] {verb} in /etc/hospes/tools.toml");
    Err(WireError::new(ErrorKind::FORBIDDEN, message).hint(hint))
}

async fn changed(monitor: &mut Option<Monitor>) -> Box<hospes_protocol::info::Info> {
    match monitor {
        Some(monitor) => monitor.changed().await,
        None => std::future::pending().await,
    }
}
