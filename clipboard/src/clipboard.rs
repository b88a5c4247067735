//! The hub with its rim: a desktop on one side, peers on the other, and pipes for what is pasted.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use hospes_protocol::clipboard::files::{Shared, WantFiles};
use hospes_protocol::clipboard::{Decline, Ready, Said, Selection, Share, Side, Want};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::FrameId;
use hospes_protocol::limits::{CLIPBOARD_LENDINGS, CLIPBOARD_LIST, CLIPBOARD_PASTES};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{spawn_blocking, spawn_local};

use crate::back_end::{Event, Handle, Read, Wanted};
use crate::files::borrow::{Borrowing, Copied};
use crate::files::lend::Lending;
use crate::files::list;
use crate::hub::{Action, Hub, Owner, PeerId, SELECTIONS, place};
use crate::kept::Kept;
use crate::peer::Outbox;
use crate::picture;
use crate::pipe::pipe;
use crate::pump::{self, From, Wire};

/// A paste of what a peer has.
#[derive(Debug)]
pub struct Paste {
    /// The peer.
    pub peer: PeerId,
    /// The selection.
    pub selection: Selection,
    /// The peer's number for its offer.
    pub serial: u64,
    /// What is wanted of it.
    pub what: Pasted,
}

/// What is wanted of a peer's copy.
#[derive(Debug)]
pub enum Pasted {
    /// Its bytes.
    Bytes {
        /// As which of its types.
        kind: String,
        /// Where they go. Closing it is the end.
        into: OwnedFd,
    },
    /// A connection over which its files are lent.
    Files(oneshot::Sender<Wire>),
}

/// A desktop's clipboard, shared.
#[derive(Debug)]
pub struct Clipboard {
    side: Side,
    inner: RefCell<Inner>,
    desktop: Handle,
    next: Cell<PeerId>,
    /// Where pastes of peers' offers go on the host's side, which opens connections. A guest asks instead.
    pastes: Option<mpsc::UnboundedSender<Paste>>,
    files: Rc<Borrowing>,
    /// One more than there are copies whose files are lent.
    lent: Arc<()>,
}

#[derive(Debug, Default)]
struct Inner {
    hub: Hub,
    peers: BTreeMap<PeerId, Rc<Outbox>>,
    kept: [Option<Rc<Kept>>; SELECTIONS.len()],
    came: Option<(&'static str, Vec<Selection>)>,
    /// Pastes that a host was asked to feed.
    calls: HashMap<[u8; 16], (PeerId, Call)>,
}

/// Who waits for what a host was asked for.
#[derive(Debug)]
enum Call {
    Bytes(OwnedFd),
    Files(oneshot::Sender<Wire>),
}

impl Clipboard {
    /// A guest's, which shows hosts' files so.
    #[must_use]
    pub fn guest(desktop: Handle, files: Borrowing) -> Self {
        Self::new(Side::Guest, desktop, None, files)
    }

    /// A host's, which shows guests' files so; `pastes` gets what is pasted of theirs.
    #[must_use]
    pub fn host(desktop: Handle, pastes: mpsc::UnboundedSender<Paste>, files: Borrowing) -> Self {
        Self::new(Side::Host, desktop, Some(pastes), files)
    }

    fn new(
        side: Side,
        desktop: Handle,
        pastes: Option<mpsc::UnboundedSender<Paste>>,
        files: Borrowing,
    ) -> Self {
        let (inner, next, lent) = (RefCell::default(), Cell::new(1), Arc::new(()));
        Self { side, inner, desktop, next, pastes, files: Rc::new(files), lent }
    }

    /// Something happened on the desktop.
    pub fn happened(&self, event: Event) {
        let actions = match event {
            Event::Came { back_end, selections } => {
                let mut inner = self.inner.borrow_mut();
                inner.hub.desktop_came();
                inner.came = Some((back_end, selections));
                Vec::new()
            }
            Event::Changed { selection, types, after, first } => {
                let mut inner = self.inner.borrow_mut();
                match inner.hub.desktop_empty(selection) {
                    // Others' copies outlive the compositor that showed them.
                    Some(action) if first && types.is_empty() => vec![action],
                    _ => inner.hub.desktop_changed(selection, types, after),
                }
            }
            Event::Looked => Vec::new(),
            Event::Wanted(wanted) => {
                self.wanted(wanted);
                Vec::new()
            }
            Event::Gone => {
                let mut inner = self.inner.borrow_mut();
                inner.came = None;
                inner.hub.desktop_gone()
            }
        };
        self.act(actions);
    }

    /// How the desktop is reached, while it is; `user` is whose it is, `share` what is allowed.
    #[must_use]
    pub fn ready(&self, user: &str, share: Share) -> Option<Ready> {
        let inner = self.inner.borrow();
        let (back_end, selections) = inner.came.as_ref()?;
        let (user, back_end) = (user.to_owned(), (*back_end).to_owned());
        Some(Ready { user, back_end, selections: selections.clone(), share })
    }

    /// A peer is there. What is to be said to it is in the outbox.
    pub fn peer_came(&self, share: Share) -> (PeerId, Rc<Outbox>) {
        let id = self.next.get();
        self.next.set(id + 1);
        let outbox = Rc::new(Outbox::default());
        let actions = {
            let mut inner = self.inner.borrow_mut();
            inner.peers.insert(id, Rc::clone(&outbox));
            inner.hub.peer_came(id, share, self.side)
        };
        self.act(actions);
        (id, outbox)
    }

    /// A peer's offer or refusal. What else it says is not the hub's.
    pub fn peer_said(&self, id: PeerId, said: Said) {
        match said {
            Said::Offer(offer) => {
                let actions = self.inner.borrow_mut().hub.peer_offered(id, offer);
                self.act(actions);
            }
            Said::Decline(Decline { call, .. }) => {
                let mut inner = self.inner.borrow_mut();
                if inner.calls.get(&call).is_some_and(|(peer, _)| *peer == id) {
                    // The program sees an end without a byte: it is all that a pipe can say.
                    inner.calls.remove(&call);
                }
            }
            _ => (),
        }
    }

    /// A peer is gone.
    pub fn peer_left(&self, id: PeerId) {
        self.files.left(id);
        let actions = {
            let mut inner = self.inner.borrow_mut();
            inner.peers.remove(&id);
            inner.calls.retain(|_, (peer, _)| *peer != id);
            inner.hub.peer_left(id)
        };
        self.act(actions);
    }

    /// Ends every peer's connection.
    pub fn close_all(&self) {
        for outbox in self.inner.borrow().peers.values() {
            outbox.close();
        }
    }

    /// Bytes were left to be pasted here.
    pub fn keep(&self, selection: Selection, types: Vec<String>, kept: Kept) {
        let actions = {
            let mut inner = self.inner.borrow_mut();
            let Some(at) = place(selection) else { return };
            inner.kept[at] = Some(Rc::new(kept));
            inner.hub.kept(selection, types)
        };
        self.act(actions);
    }

    /// What a peer pastes of the offer that it was made under `serial`.
    ///
    /// # Errors
    /// `NOT_FOUND` where something else was copied since, `FORBIDDEN` where nothing goes that way.
    pub async fn give(
        &self,
        peer: Option<PeerId>,
        selection: Selection,
        serial: u64,
        kind: &str,
    ) -> Result<From, WireError> {
        let found = {
            let inner = self.inner.borrow();
            if peer.is_some_and(|peer| !inner.hub.is_told(peer)) {
                return Err(WireError::new(ErrorKind::FORBIDDEN, "The clipboard is not shared that way"));
            }
            inner.hub.resolve(selection, serial, kind)
        };
        // A list of files is given as it is here, under its own name.
        let found = found.filter(|(_, found)| !list::is_list(kind) || found == kind);
        let (owner, kind_had) = found.ok_or_else(gone)?;
        match owner {
            Owner::Nobody => Err(gone()),
            Owner::Kept | Owner::Desktop => {
                let own = self.own(owner, selection, kind_had.clone()).await?;
                if kind == picture::PNG && kind_had != kind {
                    return made(&kind_had, own).await;
                }
                Ok(own)
            }
            Owner::Peer(owner, serial) => {
                let (ours, into) = pipe().map_err(|error| os(&error))?;
                let what = Pasted::Bytes { kind: kind_had, into };
                self.paste(Paste { peer: owner, selection, serial, what });
                Ok(From::Pipe(ours))
            }
        }
    }

    /// What a program of this desktop has, or was left here.
    async fn own(&self, owner: Owner, selection: Selection, kind: String) -> Result<From, WireError> {
        if owner == Owner::Kept {
            let kept = place(selection).and_then(|at| self.inner.borrow().kept[at].clone());
            return Ok(From::File(kept.ok_or_else(gone)?.reader().map_err(|error| os(&error))?));
        }
        let (reply, answer) = oneshot::channel();
        self.desktop.read(Read { selection, kind, reply });
        Ok(From::Pipe(answer.await.map_err(|_| gone())?))
    }

    /// The files of the offer that a peer was made under `serial`, to be lent to it. `shared` knows the folders that it
    /// has too.
    ///
    /// # Errors
    /// As [`give`](Self::give), and `LIMIT` where there are too many.
    pub async fn lend(
        &self,
        peer: Option<PeerId>,
        selection: Selection,
        serial: u64,
        shared: impl Fn(&Path) -> Option<Shared>,
    ) -> Result<Lending, WireError> {
        let found = {
            let inner = self.inner.borrow();
            if peer.is_some_and(|peer| !inner.hub.is_told(peer)) {
                return Err(WireError::new(ErrorKind::FORBIDDEN, "The clipboard is not shared that way"));
            }
            inner.hub.resolve(selection, serial, list::TYPES[0])
        };
        let (owner, kind) = found.ok_or_else(gone)?;
        if matches!(owner, Owner::Peer(..)) {
            let message = "Files that were copied on a third machine cannot be pasted here";
            return Err(WireError::new(ErrorKind::UNSUPPORTED, message)
                .hint("Paste them on the machine between first, and copy them there"));
        }
        if Arc::strong_count(&self.lent) > CLIPBOARD_LENDINGS * 4 {
            return Err(WireError::new(ErrorKind::LIMIT, "The files of too many copies are being read"));
        }
        let list = pump::all(self.own(owner, selection, kind.clone()).await?, CLIPBOARD_LIST).await;
        let list = list.map_err(|error| WireError::new(ErrorKind::LIMIT, &error))?;
        Lending::new(list::read(&kind, &list, &host_name()), shared, Arc::clone(&self.lent))
    }

    /// Where the bytes of a paste go that a host was asked for; `None` where it was not, or nobody waits any more.
    pub fn feed(&self, call: &[u8; 16]) -> Option<OwnedFd> {
        match self.inner.borrow_mut().calls.remove(call) {
            Some((_, Call::Bytes(into))) => Some(into),
            _ => None,
        }
    }

    /// Who waits for a connection over which files are lent; `None` as for [`feed`](Self::feed).
    pub fn borrower(&self, call: &[u8; 16]) -> Option<oneshot::Sender<Wire>> {
        match self.inner.borrow_mut().calls.remove(call) {
            Some((_, Call::Files(waits))) => Some(waits),
            _ => None,
        }
    }

    fn wanted(&self, wanted: Wanted) {
        let Wanted { selection, serial, kind, into } = wanted;
        let found = self.inner.borrow().hub.resolve(selection, serial, &kind);
        match found {
            Some((Owner::Peer(peer, serial), _)) if list::is_list(&kind) => {
                self.list(Copied { peer, selection, serial }, kind, into);
            }
            Some((Owner::Peer(peer, serial), kind)) => {
                self.paste(Paste { peer, selection, serial, what: Pasted::Bytes { kind, into } });
            }
            Some((Owner::Kept, had)) => {
                let kept = place(selection).and_then(|at| self.inner.borrow().kept[at].clone());
                let Some(Ok(reader)) = kept.map(|kept| kept.reader()) else { return };
                if kind == picture::PNG && had != kind {
                    spawn_local(async move {
                        if let Ok(From::File(png)) = made(&had, From::File(reader)).await {
                            pump::copy(png, into).await;
                        }
                    });
                    return;
                }
                if had == kind || !list::is_list(&kind) {
                    spawn_local(pump::copy(reader, into));
                    return;
                }
                spawn_local(async move {
                    if let Ok(bytes) = pump::all(From::File(reader), CLIPBOARD_LIST).await {
                        let items = list::read(&had, &bytes, &host_name());
                        pump::give(&list::write(&kind, &items), into).await;
                    }
                });
            }
            // Replaced meanwhile: the program sees an end without a byte.
            _ => (),
        }
    }

    /// A program pastes a list of a peer's files.
    fn list(&self, copied: Copied, kind: String, into: OwnedFd) {
        let (sender, lent) = oneshot::channel();
        if !self.files.knows(&copied) {
            let Copied { peer, selection, serial } = copied;
            self.paste(Paste { peer, selection, serial, what: Pasted::Files(sender) });
        }
        let files = Rc::clone(&self.files);
        spawn_local(async move {
            match files.list(copied, &kind, async { lent.await.ok() }).await {
                Ok(list) => pump::give(&list, into).await,
                // The program sees an end without a byte.
                Err(error) => tracing::warn!("{error}"),
            }
        });
    }

    /// Has what a peer has brought.
    fn paste(&self, paste: Paste) {
        if let Some(pastes) = &self.pastes {
            let _ = pastes.send(paste);
            return;
        }
        let mut inner = self.inner.borrow_mut();
        let Paste { peer, selection, serial, what } = paste;
        let under_way = inner.calls.values().filter(|(of, _)| *of == peer).count();
        let mut call = [0; 16];
        if under_way >= CLIPBOARD_PASTES || getrandom::fill(&mut call).is_err() {
            return;
        }
        let Some(outbox) = inner.peers.get(&peer) else { return };
        let (asked, waits) = match what {
            Pasted::Bytes { kind, into } => {
                let want = Want { call, selection, serial, kind };
                (outbox.message(FrameId::CLIPBOARD_WANT, &want), Call::Bytes(into))
            }
            Pasted::Files(sender) => {
                let want = WantFiles { call, selection, serial };
                (outbox.message(FrameId::CLIPBOARD_WANT_FILES, &want), Call::Files(sender))
            }
        };
        if asked {
            inner.calls.insert(call, (peer, waits));
        }
    }

    fn act(&self, actions: Vec<Action>) {
        let mut inner = self.inner.borrow_mut();
        for action in actions {
            match action {
                Action::Show(shown) => self.desktop.show(shown),
                Action::Tell(peer, offer) => {
                    if let Some(outbox) = inner.peers.get(&peer) {
                        outbox.offer(offer);
                    }
                }
            }
        }
        // Bytes that nobody can paste any more are let go.
        let Inner { hub, kept, .. } = &mut *inner;
        for (kept, selection) in kept.iter_mut().zip(SELECTIONS) {
            if hub.owner(selection) != Owner::Kept {
                *kept = None;
            }
        }
        self.files.retain(|copied| hub.owner(copied.selection) == Owner::Peer(copied.peer, copied.serial));
    }
}

/// A PNG of a picture of this type.
async fn made(kind: &str, from: From) -> Result<From, WireError> {
    let bytes =
        pump::all(from, picture::MOST).await.map_err(|error| WireError::new(ErrorKind::LIMIT, &error))?;
    let kind = kind.to_owned();
    let png = spawn_blocking(move || picture::to_png(&kind, &bytes)).await.map_err(|_| gone())?;
    let png = png.map_err(|error| WireError::new(ErrorKind::OTHER, &error))?;
    Ok(From::File(png.reader().map_err(|error| os(&error))?))
}

fn gone() -> WireError {
    WireError::new(ErrorKind::NOT_FOUND, "What was to be pasted is not there any more")
}

/// This machine's name, by which some programs name its files.
fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

fn os(error: &io::Error) -> WireError {
    WireError::new(ErrorKind::OS, format!("It cannot be read there: {error}"))
}
