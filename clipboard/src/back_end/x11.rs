//! X11's selections (ICCCM 2, XFIXES 2): for sessions of X, and compositors whose Xwayland is the only way.
//!
//! Everything that takes more than one step, a paste in either direction above all, is a task of its own over the one
//! connection; this is the loop that reads events and tells each task of its own. The bytes of a paste are in no more than
//! one chunk at a time, whatever their number (INCR).

mod answer;
mod authority;
mod fetch;
mod session;
mod text;

pub use self::session::open;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use hospes_protocol::clipboard::Selection;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use x11rb::connection::Connection;
use x11rb::errors::ConnectionError;
use x11rb::protocol::xfixes::SelectionNotifyEvent;
use x11rb::protocol::xproto::{Atom, ConnectionExt, SelectionRequestEvent, Timestamp};
use x11rb::protocol::{Event as Told, xproto};

use self::session::{Session, Step};
use super::{BackEndError, Event, Order, Orders, Read};
use crate::hub::{SELECTIONS, Shown, place};
use crate::readiness::register;

/// Pastes of our selections that are under way at once, and reads of programs': one more is refused.
const TRANSFERS: usize = 64;

/// An X server's selections.
#[derive(Debug)]
pub struct X11 {
    session: Rc<Session>,
    fd: AsyncFd<OwnedFd>,
    held: [Held; SELECTIONS.len()],
    happened: Vec<Event>,
    /// What came while the server was asked for its time.
    deferred: Vec<Told>,
    /// What owners have said that they have.
    named: (mpsc::UnboundedSender<Named>, mpsc::UnboundedReceiver<Named>),
    /// Ended with us.
    tasks: JoinSet<()>,
}

/// An owner's answer to what it has.
#[derive(Debug)]
struct Named {
    at: usize,
    /// The [`Held::change`] that it is the answer to.
    change: u64,
    after: u64,
    first: bool,
    targets: Targets,
}

/// What a program can be asked for: its word for each type, and whether that is Latin-1 where we say UTF-8.
type Targets = Vec<(String, Atom, text::Encoding)>;

#[derive(Debug, Default)]
struct Held {
    /// The number of what we were last told to show.
    shown: u64,
    /// What we show, and since when.
    ours: Option<Ours>,
    /// The server has not told us of it yet.
    unconfirmed: bool,
    /// Changes of owner so far.
    change: u64,
    /// What the owner has, once it has said so.
    targets: Targets,
}

#[derive(Debug, Clone)]
struct Ours {
    serial: u64,
    since: Timestamp,
    types: Rc<HashMap<Atom, String>>,
}

impl X11 {
    /// Connects to the server of a display, with the cookie that `authority` has for it, where there is one.
    ///
    /// # Errors
    /// [`BackEndError::Unreachable`], [`BackEndError::Missing`].
    pub async fn connect(display: &str, authority: Option<&Path>) -> Result<Self, BackEndError> {
        let (display, authority) = (display.to_owned(), authority.map(Path::to_owned));
        let connected = spawn_blocking(move || Session::connect(&display, authority.as_deref())).await;
        let session = connected.map_err(|error| BackEndError::Unreachable(error.to_string()))??;
        let fd = session.connection.stream().as_fd().try_clone_to_owned();
        let fd = fd.and_then(|fd| register(fd, Interest::READABLE));
        let fd = fd.map_err(|error| BackEndError::Unreachable(error.to_string()))?;
        let mut x11 = Self {
            session: Rc::new(session),
            fd,
            held: Default::default(),
            happened: Vec::new(),
            deferred: Vec::new(),
            named: mpsc::unbounded_channel(),
            tasks: JoinSet::new(),
        };
        x11.look().await.map_err(|error| BackEndError::Unreachable(error.to_string()))?;
        Ok(x11)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        "x11"
    }

    /// The selections it has.
    #[must_use]
    pub fn selections(&self) -> Vec<Selection> {
        SELECTIONS.to_vec()
    }

    /// Tells what has happened.
    pub fn tell(&mut self, orders: &Orders) {
        for event in self.happened.drain(..) {
            orders.tell(event);
        }
    }

    /// What can be pasted now, so that nothing of it is overwritten by what others had before.
    async fn look(&mut self) -> Result<(), ConnectionError> {
        for at in 0..SELECTIONS.len() {
            let owner = self.session.owner(self.session.selections[at])?;
            self.changed(at, owner, true);
        }
        while !self.tasks.is_empty() {
            tokio::select! {
                _ = self.tasks.join_next() => (),
                more = readable(&self.session, &self.fd) => more?,
            }
            self.read()?;
        }
        while let Ok(named) = self.named.1.try_recv() {
            self.named(named);
        }
        Ok(())
    }

    /// Serves until the server goes away.
    ///
    /// # Errors
    /// [`BackEndError::Ended`], [`BackEndError::Unused`].
    pub async fn run(&mut self, orders: &mut Orders) -> Result<(), BackEndError> {
        let ended = |error: ConnectionError| BackEndError::Ended(error.to_string());
        loop {
            for event in std::mem::take(&mut self.deferred) {
                self.handle(&event, Some(orders));
            }
            while let Some(event) = self.session.connection.poll_for_event().map_err(ended)? {
                self.handle(&event, Some(orders));
            }
            self.session.connection.flush().map_err(ended)?;
            self.tell(orders);
            tokio::select! {
                biased;
                more = readable(&self.session, &self.fd) => more.map_err(ended)?,
                Some(_) = self.tasks.join_next() => (),
                Some(named) = self.named.1.recv() => self.named(named),
                order = orders.next() => match order {
                    Order::Show(shown) => self.show(&shown).map_err(ended)?,
                    Order::Read(read) => self.fetch(read),
                    Order::End => return Err(BackEndError::Unused),
                }
            }
        }
    }

    fn read(&mut self) -> Result<(), ConnectionError> {
        while let Some(event) = self.session.connection.poll_for_event()? {
            self.handle(&event, None);
        }
        Ok(())
    }

    fn handle(&mut self, event: &Told, orders: Option<&Orders>) {
        match event {
            Told::XfixesSelectionNotify(event) => self.owned(event),
            Told::SelectionRequest(request) => self.asked(*request, orders),
            Told::SelectionNotify(event) => {
                self.session.route(event.requestor, Step::Converted(event.property != x11rb::NONE));
            }
            Told::PropertyNotify(event) if event.state == xproto::Property::NEW_VALUE => {
                self.session.route(event.window, Step::Written);
            }
            Told::PropertyNotify(event) => self.session.taken(event.window, event.atom),
            Told::DestroyNotify(event) => self.session.gone(event.window),
            // An error is a requestor's that is gone; the rest is nobody's.
            _ => (),
        }
    }

    fn owned(&mut self, event: &SelectionNotifyEvent) {
        self.session.time.set(event.timestamp);
        let Some(at) = self.session.selections.iter().position(|atom| *atom == event.selection) else {
            return;
        };
        if event.owner == self.session.window {
            self.held[at].unconfirmed = false;
        } else if !self.held[at].unconfirmed {
            self.changed(at, event.owner, false);
        }
    }

    /// Another program, or nobody, has the selection.
    fn changed(&mut self, at: usize, owner: xproto::Window, first: bool) {
        let held = &mut self.held[at];
        held.change += 1;
        held.ours = None;
        held.targets = Vec::new();
        let (change, after) = (held.change, held.shown);
        if owner == x11rb::NONE {
            let (selection, types) = (SELECTIONS[at], Vec::new());
            return self.happened.push(Event::Changed { selection, types, after, first });
        }
        let (session, found) = (Rc::clone(&self.session), self.named.0.clone());
        self.tasks.spawn_local(async move {
            let targets = fetch::targets(&session, session.selections[at]).await;
            let _ = found.send(Named { at, change, after, first, targets });
        });
    }

    fn named(&mut self, named: Named) {
        let Named { at, change, after, first, targets } = named;
        let held = &mut self.held[at];
        // An answer of an owner's that was replaced is nobody's.
        if held.change != change {
            return;
        }
        held.targets = targets;
        let types = held.targets.iter().map(|(name, ..)| name.clone()).collect();
        self.happened.push(Event::Changed { selection: SELECTIONS[at], types, after, first });
    }

    fn show(&mut self, shown: &Shown) -> Result<(), ConnectionError> {
        let Some(at) = place(shown.selection) else { return Ok(()) };
        let session = Rc::clone(&self.session);
        let (connection, atom) = (&session.connection, session.selections[at]);
        let held = &mut self.held[at];
        held.shown = shown.serial;
        if shown.types.is_empty() {
            if let Some(ours) = held.ours.take() {
                // Given up only where it is ours to give: a later owner's is not touched, by the time that this names.
                connection.set_selection_owner(x11rb::NONE, atom, ours.since)?;
                held.unconfirmed = false;
            } else if !held.targets.is_empty() {
                // A program's, of which the news may have crossed with the order: told again.
                let types = held.targets.iter().map(|(name, ..)| name.clone()).collect();
                let (selection, after) = (shown.selection, shown.serial);
                self.happened.push(Event::Changed { selection, types, after, first: false });
            }
            return Ok(());
        }
        let mut types = HashMap::new();
        for name in &shown.types {
            types.insert(session.atom(name)?, name.clone());
        }
        let since = session.now(|event| self.deferred.push(event))?;
        connection.set_selection_owner(session.window, atom, since)?;
        let owner = session.owner(atom)?;
        let held = &mut self.held[at];
        held.change += 1;
        held.targets = Vec::new();
        if owner == session.window {
            held.unconfirmed = true;
            held.ours = Some(Ours { serial: shown.serial, since, types: Rc::new(types) });
        } else {
            // Somebody was faster: theirs it is.
            self.changed(at, owner, false);
        }
        Ok(())
    }

    fn asked(&mut self, request: SelectionRequestEvent, orders: Option<&Orders>) {
        let at = self.session.selections.iter().position(|atom| *atom == request.selection);
        let ours = at.and_then(|at| Some((SELECTIONS[at], self.held[at].ours.clone()?)));
        let session = Rc::clone(&self.session);
        let events = orders.map(|orders| orders.events.clone());
        let (Some((selection, ours)), Some(events)) = (ours, events) else {
            return answer::refuse(&session, &request);
        };
        if self.tasks.len() >= TRANSFERS {
            return answer::refuse(&session, &request);
        }
        self.tasks.spawn_local(async move {
            answer::answer(&session, &request, selection, &ours, &events).await;
            let _ = session.connection.flush();
        });
    }

    fn fetch(&mut self, read: Read) {
        let Some(at) = place(read.selection) else { return };
        let found = self.held[at].targets.iter().find(|(name, ..)| *name == read.kind);
        let Some((_, target, encoding)) = found else { return };
        // One too many is dropped, and so refused.
        if self.tasks.len() >= TRANSFERS {
            return;
        }
        let (session, target, encoding) = (Rc::clone(&self.session), *target, *encoding);
        self.tasks.spawn_local(async move {
            fetch::fetch(&session, session.selections[at], target, encoding, read.reply).await;
        });
    }
}

/// Returns once there may be events: new bytes, or what a task read behind the loop's back.
async fn readable(session: &Session, fd: &AsyncFd<OwnedFd>) -> Result<(), ConnectionError> {
    session.connection.flush()?;
    tokio::select! {
        ready = fd.readable() => ready?.clear_ready(),
        () = session.read_elsewhere.notified() => (),
    }
    Ok(())
}
