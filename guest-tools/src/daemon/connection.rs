//! One connection from its first byte to where it belongs: a control session stays here, an operation goes to its
//! user's worker.
//!
//! ```text
//! CLIENT_HELLO … CLIENT_AUTH ─ trusted? ─┐                      ┌─ CONTROL ─ control session
//!                                        ├─ READY / OPENED due ─┤
//! TICKET ───────────── session known? ───┘                      └─ EXEC, PS … ─ verb, user allowed? ─ worker
//! ```
//! The answer that is due (READY or OPENED) is kept back until it is known what follows, so that it leaves in the same
//! packet as what follows: the worker's first frame, or our refusal. Only where a worker has to be started first does
//! it go ahead.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hospes_protocol::codec;
use hospes_protocol::error::{ErrorKind, Unknown, WireError};
use hospes_protocol::frame::{self, FrameBuffer, FrameId, Header};
use hospes_protocol::handshake::{Entropy, Guest, Ready, Session};
use hospes_protocol::keys::PublicKey;
use hospes_protocol::limits::HEADER_LEN;
use hospes_protocol::ticket::Ticket;
use hospes_protocol::version::Capabilities;
use tokio::time;

use super::transport::{Peer, Stream};
use super::{Daemon, Place, control, users};
use crate::audit;
use crate::handoff::Handoff;
use crate::trust::Decision;
use crate::verb::{Request, Verb};

/// How long a refused peer may take to read why and to close.
const LINGER: Duration = Duration::from_secs(2);
/// How long a guest that goes down may take to take the connection with it.
const DOWN: Duration = Duration::from_secs(90);
/// Bytes that it may still send meanwhile.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Why a connection ends before it got anywhere.
#[derive(Debug)]
enum End {
    /// The peer went away, or the kernel says that it did. Nobody is left to be told.
    Gone,
    /// As `Gone`, once it knew who we are and had not proved who it is: a host that was led to the wrong guest does
    /// so, and the host of a relay.
    Unproved,
    /// It is told this.
    Refused(WireError),
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::Refused(error)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// A proved and trusted host, and what it may expect.
struct Host {
    key: PublicKey,
    capabilities: Capabilities,
    /// The handshake's session; none where a ticket opened the connection.
    session: Option<Session>,
}

/// What a connection turned out to be.
enum Purpose {
    Control(Session),
    Operation {
        verb: Verb,
        id: FrameId,
        payload: Vec<u8>,
        host: Host,
    },
    /// One request of a control session's kind, alone.
    Request {
        payload: Vec<u8>,
        host: PublicKey,
    },
}

/// Serves one connection to its end, or to its handover.
pub(super) async fn serve(daemon: &Arc<Daemon>, stream: Stream, peer: Peer, place: Place<'_>) {
    let mut greeting = Greeting {
        daemon,
        stream: &stream,
        buffer: FrameBuffer::new(),
        due: Vec::new(),
        who: peer.to_string(),
    };
    let deadline = daemon.options.handshake;
    let purpose = time::timeout(deadline, greeting.purpose()).await.unwrap_or_else(|_| {
        let message = format!("Nothing complete arrived within {} ms", deadline.as_millis());
        Err(WireError::new(ErrorKind::TIMED_OUT, message).into())
    });
    // One that is refused keeps its place until it is gone: nobody gets more than the limit by being refused.
    let _place = purpose.is_err().then_some(place);
    let Greeting { buffer, mut due, who, .. } = greeting;
    let refusal = match purpose {
        Err(End::Gone) => return,
        Err(End::Unproved) => {
            return daemon.refused(&who, "It closed the connection before it proved its key");
        }
        Err(End::Refused(error)) => error,
        Ok(Purpose::Control(session)) => {
            return control::serve(daemon, &stream, buffer, due, session).await;
        }
        Ok(Purpose::Request { payload, host }) => {
            match control::alone(daemon, &stream, &mut due, &payload, host).await {
                Ok(going) => {
                    let _ = time::timeout(LINGER, stream.write_all(&due)).await;
                    // The connection of a guest that goes down ends with it: so the host sees that it does.
                    let linger = if going.is_some() { DOWN } else { LINGER };
                    drop(going);
                    let _ = time::timeout(linger, part(&stream, &[])).await;
                    return;
                }
                Err(error) => error,
            }
        }
        Ok(Purpose::Operation { verb: Verb::Time, payload, host, .. }) => {
            match super::time::serve(daemon, &stream, buffer, &mut due, &payload, host.key).await {
                Ok(()) => return,
                Err(error) => error,
            }
        }
        Ok(Purpose::Operation { verb, id, payload, host }) => {
            let mut handoff = Handoff {
                request_id: id.0,
                request: payload,
                rest: buffer.rest().to_vec(),
                preamble: std::mem::take(&mut due),
                host: host.key,
                capabilities: host.capabilities,
            };
            match operate(daemon, &stream, verb, &mut handoff).await {
                Ok(()) => return,
                Err(error) => {
                    due = handoff.preamble;
                    error
                }
            }
        }
    };
    daemon.refused(&who, &refusal.message);
    frame::put(FrameId::FAILED, &refusal, &mut due);
    let _ = time::timeout(LINGER, part(&stream, &due)).await;
}

/// Sends the last bytes and waits until the peer has closed: closing first could take them from it again.
async fn part(stream: &Stream, last: &[u8]) -> io::Result<()> {
    stream.write_all(last).await?;
    let mut discarded = [0; 4096];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match stream.read(&mut discarded).await? {
            0 => break,
            n => left = left.saturating_sub(n),
        }
    }
    Ok(())
}

/// Checks an operation against the policy, writes its audit line, and gives the connection to the user's worker.
async fn operate(
    daemon: &Daemon,
    stream: &Stream,
    verb: Verb,
    handoff: &mut Handoff,
) -> Result<(), WireError> {
    let config = daemon.config();
    if !config.verbs.allows(verb) {
        let message = format!("The guest's policy does not allow {verb}");
        return Err(WireError::new(ErrorKind::FORBIDDEN, message)
            .hint(format!("In the guest: [verbs] {verb} in /etc/hospes/tools.toml")));
    }
    let request = Request::decode(verb, FrameId(handoff.request_id), &handoff.request)?;
    // What a desktop shares is in its memory; everything else may write, and would wait until the thaw.
    if !matches!(verb, Verb::Clipboard | Verb::Display)
        && let Some(frozen) = daemon.freezes.busy()
    {
        return Err(frozen);
    }
    if matches!(verb, Verb::Clipboard | Verb::Display) {
        return daemon.desktops.hand_over(&config, stream.as_fd(), handoff, verb, &request.subject).await;
    }
    let account = users::resolve(&request.user, &config.users).await?;
    audit::allowed(&handoff.host, verb, &account.name, &request.subject);
    daemon.workers.hand_over(&account, stream, handoff).await
}

struct Greeting<'a> {
    daemon: &'a Daemon,
    stream: &'a Stream,
    buffer: FrameBuffer,
    /// What must be sent before anything else.
    due: Vec<u8>,
    /// Who it is, for the log.
    who: String,
}

impl Greeting<'_> {
    async fn purpose(&mut self) -> Result<Purpose, End> {
        let first = |id| matches!(id, FrameId::CLIENT_HELLO | FrameId::TICKET);
        let host = match self.frame(first).await? {
            (FrameId::TICKET, payload) => self.ticket(&payload)?,
            (_, hello) => self.handshake(&hello).await?,
        };
        loop {
            if self.buffer.is_empty() {
                self.send_if_awaited().await?;
            }
            match self.frame(|_| true).await? {
                (FrameId::CONTROL, _) => {
                    let session = host.session.ok_or_else(|| {
                        WireError::protocol("A control session begins with a handshake, not with a ticket")
                    })?;
                    return Ok(Purpose::Control(session));
                }
                (FrameId::REQUEST, payload) => return Ok(Purpose::Request { payload, host: host.key }),
                (FrameId::BYE, _) => return Err(End::Gone),
                (id, payload) => match Verb::of_request(id) {
                    Some(verb) => return Ok(Purpose::Operation { verb, id, payload, host }),
                    None if id.name().is_none() => {
                        frame::put(FrameId::UNKNOWN, &Unknown { id: id.0 }, &mut self.due);
                        self.send_due().await?;
                    }
                    None => return Err(WireError::protocol(format!("{id} opens no operation")).into()),
                },
            }
        }
    }

    fn ticket(&mut self, payload: &[u8]) -> Result<Host, End> {
        let ticket: Ticket = codec::decode(payload).map_err(WireError::protocol)?;
        let (opened, key, capabilities) = self.daemon.sessions().take(&ticket)?;
        self.who = key.fingerprint();
        frame::put(FrameId::OPENED, &opened, &mut self.due);
        Ok(Host { key, capabilities, session: None })
    }

    async fn handshake(&mut self, hello: &[u8]) -> Result<Host, End> {
        let daemon = self.daemon;
        let entropy = entropy()?;
        let (key, machine) = (&daemon.identity.key, daemon.identity.machine);
        let capabilities = daemon.config().capabilities();
        let guest = Guest::answer(hello, key, machine, capabilities, &entropy, &mut self.due)
            .map_err(|error| error.to_wire())?;
        self.send_due().await?;
        self.who = format!("{} (unproved)", guest.claimed().fingerprint());
        let (_, auth) = match self.frame(|id| id == FrameId::CLIENT_AUTH).await {
            Err(End::Gone) => return Err(End::Unproved),
            frame => frame?,
        };
        let session = guest.finish(&auth).map_err(|error| error.to_wire())?;
        self.who = session.peer.fingerprint();
        let first_use = self.trust(&session.peer)?;
        let ready = Ready { release: env!("CARGO_PKG_VERSION").into(), first_use };
        frame::put(FrameId::READY, &ready, &mut self.due);
        Ok(Host { key: session.peer, capabilities: session.capabilities, session: Some(session) })
    }

    /// Whether this made it the first host.
    fn trust(&self, key: &PublicKey) -> Result<bool, WireError> {
        let daemon = self.daemon;
        let mut store = daemon.trust();
        match store.decide(key, daemon.config().trust.mode) {
            Decision::Trusted => Ok(false),
            Decision::Refused => Err(store.refusal(key)),
            Decision::FirstUse => {
                // To remember a host takes a file.
                if let Some(frozen) = daemon.freezes.busy() {
                    return Err(frozen);
                }
                store.pin_first(&daemon.options.paths, &daemon.identity.machine, *key).map_err(|error| {
                    WireError::new(
                        ErrorKind::OS,
                        format!("The guest cannot remember its first host: {error}"),
                    )
                })?;
                drop(store);
                audit::noted(key, "is the first here, and trusted from now on");
                daemon.write_status();
                Ok(true)
            }
        }
    }

    /// The next frame, if it is of an expected kind: a header of another is refused before room is made for what it
    /// claims.
    async fn frame(&mut self, expected: impl Fn(FrameId) -> bool) -> Result<(FrameId, Vec<u8>), End> {
        loop {
            if let Some(bytes) = self.buffer.rest().first_chunk::<HEADER_LEN>() {
                let header = Header::parse(*bytes).map_err(WireError::protocol)?;
                if !expected(header.id) {
                    return Err(WireError::protocol(format!("{} is out of place", header.id)).into());
                }
                if let Some(frame) = self.buffer.take().map_err(WireError::protocol)? {
                    return Ok((frame.id, frame.payload.to_vec()));
                }
            }
            match self.stream.read(self.buffer.space()).await? {
                0 => return Err(End::Gone),
                n => self.buffer.filled(n),
            }
        }
    }

    /// Sends what is due where the host has not sent its request along: it may be waiting for our word first.
    async fn send_if_awaited(&mut self) -> Result<(), End> {
        match self.stream.read_now(self.buffer.space())? {
            Some(0) => Err(End::Gone),
            Some(n) => {
                self.buffer.filled(n);
                Ok(())
            }
            None => self.send_due().await,
        }
    }

    async fn send_due(&mut self) -> Result<(), End> {
        self.stream.write_all(&self.due).await?;
        self.due.clear();
        Ok(())
    }
}

fn entropy() -> Result<Entropy, WireError> {
    let mut entropy = Entropy { share: [0; 32], nonce: [0; 32], session: [0; 16] };
    [&mut entropy.share[..], &mut entropy.nonce[..], &mut entropy.session[..]]
        .into_iter()
        .try_for_each(getrandom::fill)
        .map_err(|error| WireError::new(ErrorKind::OS, format!("The guest has no random bytes: {error}")))?;
    Ok(entropy)
}

/// The word for a connection that finds no place: one that may not speak, or one too many.
pub(super) fn turn_away(daemon: &Daemon, stream: &Stream, who: &str, error: &WireError) {
    daemon.refused(who, &error.message);
    let mut last = Vec::new();
    frame::put(FrameId::FAILED, error, &mut last);
    stream.write_now(&last);
}
