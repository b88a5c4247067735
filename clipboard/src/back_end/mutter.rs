//! Mutter's clipboard for remote desktops (org.gnome.Mutter.RemoteDesktop), which any program of the session may use, with
//! no prompt and nothing started: Mutter has no data control.
//!
//! What is particular about it: of each offer one type is read at once, by Mutter's own memory of what was copied; one
//! program's clipboard is read by one reader at a time; there is no primary selection; while the screen is locked, there
//! is no session.
//!
//! A session that shows something new cancels the pastes that it has not taken up yet, and the bridge to X11 says nothing
//! to a program whose paste was cancelled (`transfer_cb` in meta-x11-selection.c of Mutter 48), which then waits for ever.
//! So each paste is taken up, if only to end it without a byte, and two sessions show things in turn: the one that shows
//! something new was asked for nothing since the other did, and has taken up what it was asked for before.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hospes_protocol::clipboard::Selection;
use tokio::sync::{RwLock, mpsc};
use tokio::task::{JoinSet, yield_now};
use zbus::message::Flags;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant, connection};

use super::{BackEndError, Event, Order, Orders, Read, Wanted};
use crate::bus::{next, watch_signals};
use crate::hub::Shown;
use crate::pipe::pipe;
use crate::pump::relay;

/// The name that Mutter has on the session's bus while it runs.
pub(crate) const DESTINATION: &str = "org.gnome.Mutter.RemoteDesktop";
const PATH: &str = "/org/gnome/Mutter/RemoteDesktop";
const SESSION: &str = "org.gnome.Mutter.RemoteDesktop.Session";
const BUS: &str = "org.freedesktop.DBus";
const PEER: &str = "org.freedesktop.DBus.Peer";
/// How long Mutter may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pastes of ours that are under way at once. One more gets nothing.
const TRANSFERS: usize = 64;

/// Two sessions with Mutter.
pub struct Mutter {
    remote: Rc<Remote>,
    messages: MessageStream,
    /// The number of what we were last told to show.
    shown: u64,
    /// What we show, and what Mutter has not yet told us that we do.
    ours: Option<u64>,
    unconfirmed: VecDeque<u64>,
    /// The session that showed something last.
    shows: usize,
    /// The second session has just become the owner: the first will tell of that change next.
    second: bool,
    /// What the desktop's programs have.
    theirs: Vec<String>,
    seen: bool,
    happened: Vec<Event>,
    reads: mpsc::UnboundedSender<Read>,
    /// Ended with us.
    tasks: JoinSet<()>,
    finished: Option<&'static str>,
}

struct Remote {
    connection: Connection,
    /// The first tells of changes, and reads.
    sessions: [Session; 2],
    /// Changes of owner so far.
    change: Cell<u64>,
}

struct Session {
    path: OwnedObjectPath,
    /// Held for reading by each paste until it is taken up, and for writing when something new is to be shown.
    taken_up: Arc<RwLock<()>>,
}

impl std::fmt::Debug for Mutter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutter").finish_non_exhaustive()
    }
}

impl Mutter {
    /// Begins a session over the bus at `address`.
    ///
    /// # Errors
    /// [`BackEndError::Missing`] where no Mutter is there, [`BackEndError::Refused`] where it gives no session,
    /// [`BackEndError::Unreachable`].
    pub async fn connect(address: &str) -> Result<Self, BackEndError> {
        let unreachable = |error: zbus::Error| BackEndError::Unreachable(error.to_string());
        let builder = connection::Builder::address(address).method_timeout(PATIENCE);
        let connection = builder.build().await.map_err(unreachable)?;
        let owned = connection.call_method(
            Some(BUS),
            "/org/freedesktop/DBus",
            Some(BUS),
            "NameHasOwner",
            &DESTINATION,
        );
        let owned: bool = owned.await.and_then(|reply| reply.body().deserialize()).map_err(unreachable)?;
        if !owned {
            return Err(BackEndError::Missing);
        }
        let mut messages = MessageStream::from(&connection);
        let left = format!("type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{DESTINATION}'");
        watch_signals(&connection, &left).await.map_err(unreachable)?;
        let [first, second] = [Session::create(&connection).await?, Session::create(&connection).await?];
        let remote = Rc::new(Remote { connection, sessions: [first, second], change: Cell::new(0) });
        // Mutter tells the one that was enabled before first: each change ends with the first session's word on it.
        for session in [1, 0] {
            let options: HashMap<&str, Variant<'_>> = HashMap::new();
            let enabled = remote.call(session, "EnableClipboard", &options).await;
            enabled.map_err(|error| BackEndError::Refused(error.to_string()))?;
        }
        // What there is now is told with that, and so before the answer to anything that is asked after it.
        let ping = remote.connection.call_method(Some(DESTINATION), PATH, Some(PEER), "Ping", &());
        ping.await.map_err(unreachable)?;
        let (reads, asked) = mpsc::unbounded_channel();
        let mut mutter = Self {
            remote: Rc::clone(&remote),
            messages: MessageStream::from(&remote.connection),
            shown: 0,
            ours: None,
            unconfirmed: VecDeque::new(),
            shows: 0,
            second: false,
            theirs: Vec::new(),
            seen: false,
            happened: Vec::new(),
            reads,
            tasks: JoinSet::new(),
            finished: None,
        };
        std::mem::swap(&mut mutter.messages, &mut messages);
        drop(messages);
        mutter.tasks.spawn_local(read_in_turn(remote, asked));
        mutter.drain(None).await;
        if !mutter.seen {
            mutter.owner_changed(Vec::new(), false);
        }
        Ok(mutter)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        "mutter"
    }

    /// The selections it has.
    #[must_use]
    pub fn selections(&self) -> Vec<Selection> {
        vec![Selection::CLIPBOARD]
    }

    /// Tells what has happened.
    pub fn tell(&mut self, orders: &Orders) {
        for event in self.happened.drain(..) {
            orders.tell(event);
        }
    }

    /// Serves until Mutter ends the session: it goes away, or the screen is locked.
    ///
    /// # Errors
    /// [`BackEndError::Ended`], [`BackEndError::Unused`].
    pub async fn run(&mut self, orders: &mut Orders) -> Result<(), BackEndError> {
        loop {
            self.tell(orders);
            if let Some(why) = self.finished {
                return Err(BackEndError::Ended(why.to_owned()));
            }
            tokio::select! {
                biased;
                message = next(&mut self.messages) => match message {
                    Some(message) => self.handle(&message, Some(orders)),
                    None => self.finished = Some("the session's bus went away"),
                },
                Some(_) = self.tasks.join_next() => (),
                order = orders.next() => match order {
                    Order::Show(shown) => self.show(&shown, orders).await?,
                    Order::Read(read) => drop(self.reads.send(read)),
                    Order::End => return Err(BackEndError::Unused),
                }
            }
        }
    }

    /// Handles what has arrived.
    async fn drain(&mut self, orders: Option<&Orders>) {
        loop {
            tokio::select! {
                biased;
                message = next(&mut self.messages) => match message {
                    Some(message) => self.handle(&message, orders),
                    None => return,
                },
                () = std::future::ready(()) => return,
            }
        }
    }

    fn handle(&mut self, message: &Message, orders: Option<&Orders>) {
        let header = message.header();
        let Some(member) = header.member() else { return };
        if member.as_str() == "NameOwnerChanged" {
            self.finished = Some("Mutter went away");
            return;
        }
        let path = header.path().map(|path| path.as_str());
        let mut sessions = self.remote.sessions.iter();
        let Some(session) = sessions.position(|session| path == Some(session.path.as_str())) else { return };
        match member.as_str() {
            "Closed" => {
                self.finished = Some("Mutter ended the session, as it does when the screen is locked");
            }
            "SelectionOwnerChanged" => {
                let body = message.body();
                let Ok(told) = body.deserialize::<HashMap<String, OwnedVariant>>() else { return };
                let ours =
                    matches!(told.get("session-is-owner").map(|value| &**value), Some(Variant::Bool(true)));
                if session == 1 {
                    self.second = ours;
                    return;
                }
                let ours = std::mem::take(&mut self.second) || ours;
                let types = told.get("mime-types").map(|value| strings(value)).unwrap_or_default();
                self.owner_changed(types, ours);
            }
            "SelectionTransfer" => {
                let body = message.body();
                let Ok((kind, transfer)) = body.deserialize::<(String, u32)>() else { return };
                if let Some(orders) = orders {
                    self.asked(session, kind, transfer, orders);
                }
            }
            _ => (),
        }
    }

    fn owner_changed(&mut self, types: Vec<String>, ours: bool) {
        self.remote.change.set(self.remote.change.get() + 1);
        let first = !std::mem::replace(&mut self.seen, true);
        if ours {
            self.theirs.clear();
            if let Some(serial) = self.unconfirmed.pop_front() {
                self.ours = Some(serial);
            }
            return;
        }
        self.theirs.clone_from(&types);
        if self.unconfirmed.is_empty() {
            self.ours = None;
            let (selection, after) = (Selection::CLIPBOARD, self.shown);
            self.happened.push(Event::Changed { selection, types, after, first });
        }
    }

    async fn show(&mut self, shown: &Shown, orders: &Orders) -> Result<(), BackEndError> {
        if shown.selection != Selection::CLIPBOARD {
            return Ok(());
        }
        self.shown = shown.serial;
        let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
        if !shown.types.is_empty() {
            self.shows = 1 - self.shows;
            options.insert("mime-types", Variant::from(shown.types.clone()));
            self.unconfirmed.push_back(shown.serial);
        } else if self.ours.is_none() && self.unconfirmed.is_empty() {
            // A program's, of which the news may have crossed with the order: told again.
            let (selection, types, after) = (shown.selection, self.theirs.clone(), shown.serial);
            self.happened.push(Event::Changed { selection, types, after, first: false });
            return Ok(());
        } else {
            self.unconfirmed.clear();
            self.ours = None;
        }
        self.drain(Some(orders)).await;
        let (remote, session) = (Rc::clone(&self.remote), self.shows);
        let set = async {
            let _all = remote.sessions[session].taken_up.write().await;
            remote.call(session, "SetSelection", &options).await
        };
        // The signals before the answer say what came of it: it waits behind them where they are many.
        tokio::pin!(set);
        let answer = loop {
            tokio::select! {
                biased;
                message = next(&mut self.messages) => match message {
                    Some(message) => self.handle(&message, Some(orders)),
                    None => return Err(BackEndError::Ended("the session's bus went away".into())),
                },
                answer = &mut set => break answer,
            }
        };
        match answer {
            Ok(_) => Ok(()),
            Err(zbus::Error::MethodError(name, why, _)) => {
                tracing::debug!("Mutter shows nothing new: {name}: {}", why.unwrap_or_default());
                self.unconfirmed.retain(|serial| *serial != shown.serial);
                Ok(())
            }
            Err(error) => Err(BackEndError::Ended(error.to_string())),
        }
    }

    /// A program pastes what we show.
    fn asked(&mut self, session: usize, kind: String, transfer: u32, orders: &Orders) {
        let (remote, events, serial) = (Rc::clone(&self.remote), orders.events.clone(), self.ours);
        let many = self.tasks.len() > TRANSFERS;
        // Not had where the session is about to show more, which it does only once nothing is asked of it any more.
        let waits = Arc::clone(&self.remote.sessions[session].taken_up).try_read_owned().ok();
        self.tasks.spawn_local(async move {
            let taken_up = remote.call(session, "SelectionWrite", &transfer).await;
            drop(waits);
            let carried = async {
                let to: zbus::OwnedFd = taken_up.ok()?.body().deserialize().ok()?;
                let serial = serial.filter(|_| !many)?;
                let (read, into) = pipe().ok()?;
                let selection = Selection::CLIPBOARD;
                events.send(Event::Wanted(Wanted { selection, serial, kind, into })).ok()?;
                relay(read, OwnedFd::from(to)).await.ok()
            };
            let done = carried.await.is_some();
            let _ = remote.send(session, "SelectionWriteDone", &(transfer, done)).await;
        });
    }
}

/// Reads what programs have, one after the other.
async fn read_in_turn(remote: Rc<Remote>, mut asked: mpsc::UnboundedReceiver<Read>) {
    while let Some(Read { kind, reply, .. }) = asked.recv().await {
        let change = remote.change.get();
        let read = async {
            let answer = remote.call(0, "SelectionRead", &kind.as_str()).await.ok()?;
            let from: zbus::OwnedFd = answer.body().deserialize().ok()?;
            // Another program may have copied meanwhile, whose bytes these would be: that was told before the answer.
            yield_now().await;
            if remote.change.get() != change {
                return None;
            }
            let (ours, into) = pipe().ok()?;
            reply.send(ours).ok()?;
            relay(OwnedFd::from(from), into).await.ok()
        };
        read.await;
    }
}

impl Session {
    async fn create(connection: &Connection) -> Result<Self, BackEndError> {
        let refused = |error: zbus::Error| BackEndError::Refused(error.to_string());
        let reply = connection.call_method(Some(DESTINATION), PATH, Some(DESTINATION), "CreateSession", &());
        let path: OwnedObjectPath =
            reply.await.and_then(|reply| reply.body().deserialize()).map_err(refused)?;
        let signals = format!("type='signal',sender='{DESTINATION}',path='{path}'");
        let watched = watch_signals(connection, &signals).await;
        watched.map_err(|error| BackEndError::Unreachable(error.to_string()))?;
        Ok(Self { path, taken_up: Arc::default() })
    }
}

impl Remote {
    async fn call<B>(&self, session: usize, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        let path = &self.sessions[session].path;
        self.connection.call_method(Some(DESTINATION), path, Some(SESSION), method, body).await
    }

    /// Asks with no answer.
    async fn send<B>(&self, session: usize, method: &str, body: &B) -> zbus::Result<()>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        let message = Message::method_call(&self.sessions[session].path, method)
            .destination(DESTINATION)
            .interface(SESSION)
            .with_flags(Flags::NO_REPLY_EXPECTED)
            .build(body)?;
        self.connection.send(&message).await
    }
}

/// A list of strings, alone or alone in a structure.
fn strings(value: &Variant<'_>) -> Vec<String> {
    match value {
        Variant::Array(array) => array.iter().flat_map(strings).collect(),
        Variant::Structure(structure) => structure.fields().iter().flat_map(strings).collect(),
        Variant::Variant(inner) => strings(inner),
        Variant::Str(string) => vec![string.to_string()],
        _ => Vec::new(),
    }
}
