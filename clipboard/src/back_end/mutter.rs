//! Mutter's clipboard for remote desktops (org.gnome.Mutter.RemoteDesktop), which any program of the session may use, with
//! no prompt and nothing started: Mutter has no data control.
//!
//! What is particular about it: of each offer one type is read at once, by Mutter's own memory of what was copied; one
//! program's clipboard is read by one reader at a time; there is no primary selection; and while the screen is locked,
//! there is no session.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use hospes_protocol::clipboard::Selection;
use tokio::sync::mpsc;
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

/// A session with Mutter.
pub struct Mutter {
    remote: Rc<Remote>,
    messages: MessageStream,
    /// The number of what we were last told to show.
    shown: u64,
    /// What we show, and what Mutter has not yet told us that we do.
    ours: Option<u64>,
    unconfirmed: VecDeque<u64>,
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
    session: OwnedObjectPath,
    /// Changes of owner so far.
    change: Cell<u64>,
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
        let refused = |error: zbus::Error| BackEndError::Refused(error.to_string());
        let mut messages = MessageStream::from(&connection);
        let left = format!("type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{DESTINATION}'");
        watch_signals(&connection, &left).await.map_err(unreachable)?;
        let reply = connection.call_method(Some(DESTINATION), PATH, Some(DESTINATION), "CreateSession", &());
        let session: OwnedObjectPath =
            reply.await.and_then(|reply| reply.body().deserialize()).map_err(refused)?;
        let signals = format!("type='signal',sender='{DESTINATION}',path='{session}'");
        watch_signals(&connection, &signals).await.map_err(unreachable)?;
        let remote = Rc::new(Remote { connection, session, change: Cell::new(0) });
        let options: HashMap<&str, Variant<'_>> = HashMap::new();
        remote.call("EnableClipboard", &options).await.map_err(refused)?;
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
        mutter.drain().await;
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
                    Order::Show(shown) => self.show(&shown).await?,
                    Order::Read(read) => drop(self.reads.send(read)),
                    Order::End => return Err(BackEndError::Unused),
                }
            }
        }
    }

    /// Handles what has arrived.
    async fn drain(&mut self) {
        loop {
            tokio::select! {
                biased;
                message = next(&mut self.messages) => match message {
                    Some(message) => self.handle(&message, None),
                    None => return,
                },
                () = std::future::ready(()) => return,
            }
        }
    }

    fn handle(&mut self, message: &Message, orders: Option<&Orders>) {
        let header = message.header();
        let Some(member) = header.member() else { return };
        match member.as_str() {
            "NameOwnerChanged" => self.finished = Some("Mutter went away"),
            _ if header.path().is_none_or(|path| path.as_str() != self.remote.session.as_str()) => (),
            "Closed" => {
                self.finished = Some("Mutter ended the session, as it does when the screen is locked");
            }
            "SelectionOwnerChanged" => {
                let body = message.body();
                let Ok(told) = body.deserialize::<HashMap<String, OwnedVariant>>() else { return };
                let ours =
                    matches!(told.get("session-is-owner").map(|value| &**value), Some(Variant::Bool(true)));
                let types = told.get("mime-types").map(|value| strings(value)).unwrap_or_default();
                self.owner_changed(types, ours);
            }
            "SelectionTransfer" => {
                let body = message.body();
                let Ok((kind, transfer)) = body.deserialize::<(String, u32)>() else { return };
                if let Some(orders) = orders {
                    self.asked(kind, transfer, orders);
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

    async fn show(&mut self, shown: &Shown) -> Result<(), BackEndError> {
        if shown.selection != Selection::CLIPBOARD {
            return Ok(());
        }
        self.shown = shown.serial;
        let mut options: HashMap<&str, Variant<'_>> = HashMap::new();
        if !shown.types.is_empty() {
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
        // Its answer is the signal.
        let sent = self.remote.send("SetSelection", &options).await;
        sent.map_err(|error| BackEndError::Ended(error.to_string()))
    }

    /// A program pastes what we show.
    fn asked(&mut self, kind: String, transfer: u32, orders: &Orders) {
        let (remote, events, serial) = (Rc::clone(&self.remote), orders.events.clone(), self.ours);
        let many = self.tasks.len() > TRANSFERS;
        self.tasks.spawn_local(async move {
            let carried = async {
                let serial = serial.filter(|_| !many)?;
                let reply = remote.call("SelectionWrite", &transfer).await.ok()?;
                let to: zbus::OwnedFd = reply.body().deserialize().ok()?;
                let (read, into) = pipe().ok()?;
                let selection = Selection::CLIPBOARD;
                events.send(Event::Wanted(Wanted { selection, serial, kind, into })).ok()?;
                relay(read, OwnedFd::from(to)).await.ok()
            };
            let done = carried.await.is_some();
            let _ = remote.send("SelectionWriteDone", &(transfer, done)).await;
        });
    }
}

/// Reads what programs have, one after the other.
async fn read_in_turn(remote: Rc<Remote>, mut asked: mpsc::UnboundedReceiver<Read>) {
    while let Some(Read { kind, reply, .. }) = asked.recv().await {
        let change = remote.change.get();
        let read = async {
            let answer = remote.call("SelectionRead", &kind.as_str()).await.ok()?;
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

impl Remote {
    async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        self.connection.call_method(Some(DESTINATION), &self.session, Some(SESSION), method, body).await
    }

    /// Asks with no answer.
    async fn send<B>(&self, method: &str, body: &B) -> zbus::Result<()>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        let message = Message::method_call(&self.session, method)
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
