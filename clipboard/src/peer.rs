//! The long connection of one machine that the clipboard is shared with.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use hospes_protocol::clipboard::{Channel, ClipboardError, Offer, Said};
use hospes_protocol::error::WireError;
use hospes_protocol::frame::{self, FrameError, FrameId};
use serde::Serialize;
use tokio::sync::Notify;

use crate::hub::{SELECTIONS, place};
use crate::pump::Wire;

/// Bytes of questions and refusals that may wait for a peer that reads nothing.
const WAITING: usize = 256 * 1024;

/// What is to be said to a peer. Offers that it has not read yet are replaced by the next one: a peer that is slow
/// costs no memory, and gets the last of a thousand.
#[derive(Debug, Default)]
pub struct Outbox {
    said: RefCell<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    offers: [Option<Offer>; SELECTIONS.len()],
    frames: Vec<u8>,
    close: bool,
}

impl Outbox {
    /// Says this offer, in place of one on the same selection that has not left yet.
    pub fn offer(&self, offer: Offer) {
        if let Some(at) = place(offer.selection) {
            self.said.borrow_mut().offers[at] = Some(offer);
            self.more.notify_one();
        }
    }

    /// Says a message; false where too much waits already.
    #[must_use]
    pub fn message<T: Serialize>(&self, id: FrameId, message: &T) -> bool {
        let mut said = self.said.borrow_mut();
        if said.frames.len() > WAITING {
            return false;
        }
        frame::put(id, message, &mut said.frames);
        self.more.notify_one();
        true
    }

    /// Ends the connection.
    pub fn close(&self) {
        self.said.borrow_mut().close = true;
        self.more.notify_one();
    }

    /// What waits, as bytes; `None` where the connection is to end.
    fn take(&self) -> Option<Vec<u8>> {
        let mut said = self.said.borrow_mut();
        if said.close {
            return None;
        }
        let mut out = std::mem::take(&mut said.frames);
        let mut offers: Vec<Offer> = said.offers.iter_mut().filter_map(Option::take).collect();
        offers.sort_by_key(|offer| offer.serial);
        for offer in &offers {
            frame::put(FrameId::CLIPBOARD_OFFER, offer, &mut out);
        }
        Some(out)
    }
}

/// Why a peer's connection ended.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It closed, or we did.
    #[error("The clipboard's connection was closed")]
    Closed,
    /// It broke.
    #[error("The clipboard's connection was lost: {0}")]
    Io(#[from] io::Error),
    /// The peer broke the protocol.
    #[error("The peer broke the protocol: {0}")]
    Protocol(#[from] ClipboardError),
    /// Its frames are none.
    #[error("The peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The peer ended it, and why.
    #[error("{0}")]
    Failed(WireError),
}

/// Carries what is said both ways until the connection ends. `read` is what came before; `first` leaves before
/// anything else.
pub async fn converse(
    fd: OwnedFd,
    read: &[u8],
    first: Vec<u8>,
    mut channel: Channel,
    outbox: &Outbox,
    mut heard: impl FnMut(Said),
) -> PeerError {
    let mut wire = match Wire::new(fd, read) {
        Ok(wire) => wire,
        Err(error) => return error.into(),
    };
    let mut out = first;
    loop {
        loop {
            let said = match wire.frames().take() {
                Ok(Some(frame)) => channel.receive(frame),
                Ok(None) => break,
                Err(error) => return error.into(),
            };
            match said {
                Ok(Said::Nothing) => (),
                Ok(Said::Bye) => return PeerError::Closed,
                Ok(Said::Failed(error)) => return PeerError::Failed(error),
                Ok(said) => heard(said),
                Err(error) => return error.into(),
            }
        }
        if out.is_empty() {
            match outbox.take() {
                Some(bytes) => out = bytes,
                None => return PeerError::Closed,
            }
        }
        tokio::select! {
            more = wire.advance(&mut out) => match more {
                Ok(true) => (),
                Ok(false) => return PeerError::Closed,
                Err(error) => return error.into(),
            },
            () = outbox.more.notified() => if outbox.said.borrow().close {
                return PeerError::Closed;
            },
        }
    }
}
