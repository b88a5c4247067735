//! Gives a program what it asks us for (ICCCM 2.2): what there is, since when, several at once, and bytes of any number.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hospes_protocol::clipboard::Selection;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::timeout;
use x11rb::connection::Connection;
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ConnectionExt, EventMask, PropMode, SELECTION_NOTIFY_EVENT, SelectionNotifyEvent,
    SelectionRequestEvent, Window,
};
use x11rb::wrapper::ConnectionExt as _;

use super::Ours;
use super::session::Session;
use super::text::ToLatin1;
use crate::back_end::{Event, Wanted};
use crate::pipe::pipe;
use crate::readiness::register;

/// What is written at once: servers take 256 KiB in one request without an extension.
const CHUNK: usize = 240 * 1024;
/// How long a requestor may leave a piece where it is.
const PATIENCE: Duration = Duration::from_secs(60);
/// Targets of one request for several.
const SEVERAL: u32 = 64;

/// Tells a requestor that it gets nothing.
pub(super) fn refuse(session: &Session, request: &SelectionRequestEvent) {
    notify(session, request, x11rb::NONE);
}

/// Answers one request to its end.
pub(super) async fn answer(
    session: &Session,
    request: &SelectionRequestEvent,
    selection: Selection,
    ours: &Ours,
    events: &mpsc::UnboundedSender<Event>,
) {
    let giving = Giving { session, requestor: request.requestor, selection, ours, events };
    // A requestor of the old kind names no property, and means the target's name (ICCCM 2.2).
    let property = if request.property == x11rb::NONE { request.target } else { request.property };
    if request.target == session.atoms.MULTIPLE {
        giving.several(request, property).await;
        return;
    }
    let Some(given) = giving.one(request.target, property).await else { return refuse(session, request) };
    notify(session, request, property);
    if let Some(rest) = given {
        rest.carry(&giving).await;
    }
}

fn notify(session: &Session, request: &SelectionRequestEvent, property: Atom) {
    let event = SelectionNotifyEvent {
        response_type: SELECTION_NOTIFY_EVENT,
        sequence: 0,
        time: request.time,
        requestor: request.requestor,
        selection: request.selection,
        target: request.target,
        property,
    };
    let _ = session.connection.send_event(false, request.requestor, EventMask::NO_EVENT, event);
    let _ = session.connection.flush();
}

struct Giving<'s> {
    session: &'s Session,
    requestor: Window,
    selection: Selection,
    ours: &'s Ours,
    events: &'s mpsc::UnboundedSender<Event>,
}

/// What did not fit at once: the rest comes piece by piece, as the requestor takes it.
struct Rest {
    source: Source,
    property: Atom,
    kind: Atom,
    taken: mpsc::UnboundedReceiver<()>,
}

impl Giving<'_> {
    /// Writes one target, or the beginning of it. `None` where it cannot be had.
    async fn one(&self, target: Atom, property: Atom) -> Option<Option<Rest>> {
        let Self { session, requestor, ours, .. } = self;
        let (connection, atoms) = (&session.connection, &session.atoms);
        if target == atoms.TARGETS {
            let mut targets = vec![atoms.TARGETS, atoms.MULTIPLE, atoms.TIMESTAMP, session.mark];
            targets.extend(ours.types.keys());
            let replace = PropMode::REPLACE;
            connection.change_property32(replace, *requestor, property, AtomEnum::ATOM, &targets).ok()?;
            return Some(None);
        }
        if target == atoms.TIMESTAMP {
            let since = [ours.since];
            let replace = PropMode::REPLACE;
            connection.change_property32(replace, *requestor, property, AtomEnum::INTEGER, &since).ok()?;
            return Some(None);
        }
        let name = ours.types.get(&target)?;
        let latin1 = target == u32::from(AtomEnum::STRING);
        let text = latin1 || target == atoms.TEXT;
        let kind = if target == atoms.TEXT { atoms.UTF8_STRING } else { target };
        let (read, into) = pipe().ok()?;
        // Text's old names are encodings here, and were only names where it comes from.
        let wanted = if text { "UTF8_STRING".to_owned() } else { name.clone() };
        let wanted = Wanted { selection: self.selection, serial: ours.serial, kind: wanted, into };
        self.events.send(Event::Wanted(wanted)).ok()?;
        let mut source = Source::new(read, latin1)?;
        let first = source.chunk().await?;
        if source.ended {
            connection.change_property8(PropMode::REPLACE, *requestor, property, kind, &first).ok()?;
            return Some(None);
        }
        source.ahead = first;
        let taken = session.give(*requestor, property)?;
        let at_least = [u32::try_from(CHUNK).ok()?];
        connection.change_property32(PropMode::REPLACE, *requestor, property, atoms.INCR, &at_least).ok()?;
        Some(Some(Rest { source, property, kind, taken }))
    }

    /// Several at once (ICCCM 2.6.2): the answer says which could not be had, once each has been written or begun.
    async fn several(&self, request: &SelectionRequestEvent, property: Atom) {
        let Self { session, requestor, .. } = self;
        let connection = &session.connection;
        let pairs = connection
            .get_property(false, *requestor, property, session.atoms.ATOM_PAIR, 0, 2 * SEVERAL)
            .ok()
            .and_then(|cookie| cookie.reply().ok());
        session.read_elsewhere.notify_one();
        let pairs: Option<Vec<Atom>> = pairs.and_then(|pairs| Some(pairs.value32()?.collect()));
        let Some(mut pairs) = pairs.filter(|pairs| request.property != x11rb::NONE && !pairs.is_empty())
        else {
            return refuse(session, request);
        };
        let mut rests = Vec::new();
        for pair in pairs.chunks_exact_mut(2) {
            let several = pair[0] == session.atoms.MULTIPLE || pair[1] == x11rb::NONE;
            match if several { None } else { self.one(pair[0], pair[1]).await } {
                Some(rest) => rests.extend(rest),
                None => pair[1] = x11rb::NONE,
            }
        }
        let kind = session.atoms.ATOM_PAIR;
        let _ = connection.change_property32(PropMode::REPLACE, *requestor, property, kind, &pairs);
        notify(session, request, property);
        // One after the other: their requestor is one program.
        for rest in rests {
            rest.carry(self).await;
        }
    }
}

impl Rest {
    /// Writes the next piece whenever the requestor has taken the last, to the end, which is a piece without a byte.
    async fn carry(mut self, giving: &Giving<'_>) {
        let Giving { session, requestor, .. } = giving;
        while let Ok(Some(())) = timeout(PATIENCE, self.taken.recv()).await {
            let Some(chunk) = self.source.chunk().await else { break };
            let replace = PropMode::REPLACE;
            let written =
                session.connection.change_property8(replace, *requestor, self.property, self.kind, &chunk);
            if written.is_err() || session.connection.flush().is_err() || chunk.is_empty() {
                break;
            }
        }
        session.given(*requestor, self.property);
    }
}

/// What the other side gives, in chunks.
struct Source {
    pipe: AsyncFd<OwnedFd>,
    latin1: Option<ToLatin1>,
    /// A chunk that was read already.
    ahead: Vec<u8>,
    ended: bool,
}

impl Source {
    fn new(pipe: OwnedFd, latin1: bool) -> Option<Self> {
        let pipe = register(pipe, Interest::READABLE).ok()?;
        Some(Self { pipe, latin1: latin1.then(ToLatin1::default), ahead: Vec::new(), ended: false })
    }

    /// The next chunk: a whole one, or what there is before the end, where it is empty at last.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        if !self.ahead.is_empty() {
            return Some(std::mem::take(&mut self.ahead));
        }
        let mut chunk = vec![0; CHUNK];
        let mut len = 0;
        while len < CHUNK && !self.ended {
            let space = &mut chunk[len..];
            let read = self.pipe.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, space)?)).await;
            match read.ok()? {
                0 => self.ended = true,
                n => len += n,
            }
        }
        chunk.truncate(len);
        Some(match &mut self.latin1 {
            Some(latin1) => latin1.next(&chunk),
            None => chunk,
        })
    }
}
