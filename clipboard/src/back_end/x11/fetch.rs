//! Asks a program for what it has (ICCCM 2.4), and for its list of that.

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use x11rb::connection::Connection;
use x11rb::errors::{ConnectionError, ReplyError};
use x11rb::protocol::xproto::{Atom, AtomEnum, ConnectionExt, GetPropertyReply, Window};

use super::Targets;
use super::session::{Session, Step};
use super::text::{Encoding, from_targets, to_utf8};
use crate::pipe::{pipe, set_nonblocking};
use crate::readiness::register;

/// How long an owner may take for its next step. It may be another machine's program, or have hung.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is read of a property at once, in units of four bytes.
const PIECE: u32 = 64 * 1024;
/// Targets of one owner that are looked at.
const TARGETS: u32 = 1024;

/// What the owner of a selection says that it has; nothing where it does not answer.
pub(super) async fn targets(session: &Session, selection: Atom) -> Targets {
    let Ok((window, mut steps)) = session.ask() else { return Targets::new() };
    let list = async {
        convert(session, window, selection, session.atoms.TARGETS, &mut steps).await?;
        let property = property(session, window, 0, TARGETS)?;
        let atoms: Vec<Atom> = property.value32()?.collect();
        // Ours, or what somebody keeps of ours.
        if atoms.contains(&session.mark) {
            return None;
        }
        session.names(&atoms).ok()
    };
    let list = list.await.unwrap_or_default();
    session.asked(window);
    from_targets(list)
}

/// Asks the owner for a target, and has its bytes come out of the pipe that `reply` gets, which is dropped where the owner
/// declines.
pub(super) async fn fetch(
    session: &Session,
    selection: Atom,
    target: Atom,
    encoding: Encoding,
    reply: oneshot::Sender<OwnedFd>,
) {
    let Ok((window, mut steps)) = session.ask() else { return };
    let carried = async {
        convert(session, window, selection, target, &mut steps).await?;
        let (ours, into) = pipe().ok()?;
        set_nonblocking(&into).ok()?;
        let into = Sink { fd: register(into, Interest::WRITABLE).ok()?, encoding };
        reply.send(ours).ok()?;
        carry(session, window, &mut steps, &into).await
    };
    if carried.await.is_none() {
        tracing::debug!("An owner of a selection did not give what it was asked for");
    }
    session.asked(window);
}

/// Asks, and waits for the answer.
async fn convert(
    session: &Session,
    window: Window,
    selection: Atom,
    target: Atom,
    steps: &mut mpsc::UnboundedReceiver<Step>,
) -> Option<()> {
    let data = session.atoms._HOSPES_DATA;
    let connection = &session.connection;
    connection.convert_selection(window, selection, target, data, session.time.get()).ok()?;
    connection.flush().ok()?;
    loop {
        match timeout(PATIENCE, steps.recv()).await.ok()?? {
            Step::Converted(converted) => return converted.then_some(()),
            // Of the property that the answer will speak of.
            Step::Written => (),
        }
    }
}

/// Where a program's bytes go.
struct Sink {
    fd: AsyncFd<OwnedFd>,
    encoding: Encoding,
}

impl Sink {
    async fn write(&self, bytes: &[u8]) -> Option<()> {
        let converted = if self.encoding == Encoding::Latin1 { Some(to_utf8(bytes)) } else { None };
        let mut bytes = converted.as_deref().unwrap_or(bytes);
        while !bytes.is_empty() {
            let written = self.fd.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await;
            bytes = &bytes[written.ok()?..];
        }
        Some(())
    }
}

/// Carries what the owner wrote, at once or piece by piece (ICCCM 2.7.2), to its end.
async fn carry(
    session: &Session,
    window: Window,
    steps: &mut mpsc::UnboundedReceiver<Step>,
    into: &Sink,
) -> Option<()> {
    let data = session.atoms._HOSPES_DATA;
    let first = property(session, window, 0, PIECE)?;
    if first.type_ != session.atoms.INCR {
        whole(session, window, first, into).await?;
        return Some(());
    }
    loop {
        // The next piece is written once this one is gone: whoever reads slowly slows the owner down.
        session.connection.delete_property(window, data).ok()?;
        session.connection.flush().ok()?;
        while timeout(PATIENCE, steps.recv()).await.ok()?? != Step::Written {}
        let piece = property(session, window, 0, PIECE)?;
        if whole(session, window, piece, into).await? == 0 {
            return Some(());
        }
    }
}

/// Carries all of a property, of which the beginning has been read.
async fn whole(session: &Session, window: Window, mut piece: GetPropertyReply, into: &Sink) -> Option<usize> {
    let mut total = 0;
    loop {
        into.write(&piece.value).await?;
        total += piece.value.len();
        if piece.bytes_after == 0 {
            return Some(total);
        }
        piece = property(session, window, u32::try_from(total / 4).ok()?, PIECE)?;
    }
}

fn property(session: &Session, window: Window, offset: u32, len: u32) -> Option<GetPropertyReply> {
    let data = session.atoms._HOSPES_DATA;
    let reply = || -> Result<GetPropertyReply, ReplyError> {
        let cookie = session.connection.get_property(false, window, data, AtomEnum::ANY, offset, len);
        cookie.map_err(|error: ConnectionError| ReplyError::from(error))?.reply()
    };
    let reply = reply();
    session.read_elsewhere.notify_one();
    reply.ok()
}
