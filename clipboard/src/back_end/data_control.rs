//! Wayland compositors' data control: ext-data-control-v1, and zwlr-data-control, its forerunner.
//!
//! Both are for programs without a window, both hand over pipes, and both tell every one of them of each selection, our
//! own included: ours carry a mark among their types. From our own change until the compositor has told us of it, what
//! it tells is older and counts for nothing.

mod dialect;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hospes_protocol::clipboard::Selection;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use wayland_client::backend::{ObjectId, WaylandError};
use wayland_client::protocol::{wl_registry, wl_seat};
use wayland_client::{Connection, Dispatch, EventQueue, QueueHandle};

use self::dialect::{Device, Manager, Offer, Source};
use super::{BackEndError, Event, Order, Orders, Read, Wanted};
use crate::hub::{SELECTIONS, Shown, place};
use crate::pipe::pipe;
use crate::readiness::register;
use crate::types::MARK;

/// Types of one offer that are remembered. More than cross: the hub chooses.
const TYPES: usize = 1024;

/// A compositor's clipboard.
pub struct DataControl {
    connection: Connection,
    queue: EventQueue<State>,
    state: State,
    fd: AsyncFd<OwnedFd>,
}

#[derive(Default)]
struct State {
    seat: Option<wl_seat::WlSeat>,
    manager: Option<Manager>,
    /// The name and version of what was advertised: ext is bound where both are.
    ext: Option<(u32, u32)>,
    wlr: Option<(u32, u32)>,
    device: Option<Device>,
    /// Offers that were introduced, with their types so far.
    offers: HashMap<ObjectId, (Offer, Vec<String>)>,
    held: [Held; SELECTIONS.len()],
    mark: String,
    happened: Vec<Event>,
    finished: bool,
}

#[derive(Default)]
struct Held {
    /// What the desktop's programs have.
    offer: Option<(Offer, Vec<String>)>,
    /// The number of what we were last told to show.
    shown: u64,
    /// What we show.
    source: Option<(Source, u64)>,
    /// The compositor has not told us of it yet.
    unconfirmed: bool,
    /// What it told in the meantime, for the case that it refuses ours.
    passed_over: Option<Vec<String>>,
    seen: bool,
}

impl std::fmt::Debug for DataControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataControl").finish_non_exhaustive()
    }
}

impl DataControl {
    /// Connects to the compositor at `socket`.
    ///
    /// # Errors
    /// [`BackEndError::Unreachable`], [`BackEndError::Missing`].
    pub fn connect(socket: &Path) -> Result<Self, BackEndError> {
        let unreachable = |error: &dyn std::fmt::Display| BackEndError::Unreachable(error.to_string());
        let stream = UnixStream::connect(socket).map_err(|error| unreachable(&error))?;
        let connection = Connection::from_socket(stream).map_err(|error| unreachable(&error))?;
        let mut queue = connection.new_event_queue();
        let handle = queue.handle();
        let registry = connection.display().get_registry(&handle, ());
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| unreachable(&error))?;
        let mark: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut state = State { mark: format!("{MARK}{mark}"), ..State::default() };
        queue.roundtrip(&mut state).map_err(|error| unreachable(&error))?;
        state.manager = Manager::bind(&registry, state.ext, state.wlr, &handle);
        let (Some(manager), Some(seat)) = (&state.manager, &state.seat) else {
            return Err(BackEndError::Missing);
        };
        state.device = Some(manager.device(seat, &handle));
        // What can be pasted now is told with the device.
        queue.roundtrip(&mut state).map_err(|error| unreachable(&error))?;
        let fd = connection.as_fd().try_clone_to_owned().map_err(|error| unreachable(&error))?;
        let fd =
            register(fd, Interest::READABLE | Interest::WRITABLE).map_err(|error| unreachable(&error))?;
        Ok(Self { connection, queue, state, fd })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.state.manager {
            Some(Manager::Wlr(_)) => "wlr-data-control",
            _ => "ext-data-control",
        }
    }

    /// The selections it has.
    #[must_use]
    pub fn selections(&self) -> Vec<Selection> {
        let primary = self.state.manager.as_ref().is_some_and(Manager::has_primary);
        SELECTIONS.into_iter().filter(|selection| *selection != Selection::PRIMARY || primary).collect()
    }

    /// Tells what has happened.
    pub fn tell(&mut self, orders: &Orders) {
        for event in self.state.happened.drain(..) {
            orders.tell(event);
        }
    }

    /// Serves until the compositor goes away.
    ///
    /// # Errors
    /// [`BackEndError::Ended`], [`BackEndError::Unused`].
    pub async fn run(&mut self, orders: &mut Orders) -> Result<(), BackEndError> {
        loop {
            self.queue
                .dispatch_pending(&mut self.state)
                .map_err(|error| BackEndError::Ended(error.to_string()))?;
            self.tell(orders);
            if self.state.finished {
                return Err(BackEndError::Ended("the compositor took the clipboard away".to_owned()));
            }
            let stuck = self.flush()?;
            let Some(guard) = self.queue.prepare_read() else { continue };
            tokio::select! {
                biased;
                ready = self.fd.readable() => {
                    let mut ready = ready.map_err(|error| BackEndError::Ended(error.to_string()))?;
                    match guard.read() {
                        Ok(_) => (),
                        Err(WaylandError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            ready.clear_ready();
                        }
                        Err(error) => return Err(BackEndError::Ended(error.to_string())),
                    }
                }
                ready = self.fd.writable(), if stuck => {
                    ready.map_err(|error| BackEndError::Ended(error.to_string()))?.clear_ready();
                }
                order = orders.next() => {
                    drop(guard);
                    match order {
                        Order::Show(shown) => self.show(&shown),
                        Order::Read(read) => self.read(read),
                        Order::End => return Err(BackEndError::Unused),
                    }
                }
            }
        }
    }

    /// Sends what was asked; true where the compositor takes no more for now.
    fn flush(&self) -> Result<bool, BackEndError> {
        match self.connection.flush() {
            Ok(()) => Ok(false),
            Err(WaylandError::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(BackEndError::Ended(error.to_string())),
        }
    }

    fn show(&mut self, shown: &Shown) {
        let Some(at) = place(shown.selection) else { return };
        let (Some(manager), Some(device)) = (&self.state.manager, &self.state.device) else { return };
        if shown.selection == Selection::PRIMARY && !manager.has_primary() {
            return;
        }
        let held = &mut self.state.held[at];
        held.shown = shown.serial;
        if shown.types.is_empty() {
            // Given up only where it is ours to give.
            if let Some((source, _)) = held.source.take() {
                device.set(shown.selection, None);
                source.destroy();
                held.unconfirmed = false;
            } else if let Some((_, types)) = &held.offer {
                // A program's, of which the news may have crossed with the order: told again.
                let (selection, types, after) = (shown.selection, types.clone(), shown.serial);
                self.state.happened.push(Event::Changed { selection, types, after, first: false });
            }
            return;
        }
        let source = manager.source(&self.queue.handle());
        source.offer(&self.state.mark);
        for name in &shown.types {
            source.offer(name);
        }
        device.set(shown.selection, Some(&source));
        held.unconfirmed = true;
        if let Some((old, _)) = held.source.replace((source, shown.serial)) {
            old.destroy();
        }
    }

    fn read(&self, read: Read) {
        let offer = place(read.selection).and_then(|at| self.state.held[at].offer.as_ref());
        let Some((offer, _)) = offer else { return };
        if let Ok((ours, theirs)) = pipe() {
            offer.receive(&read.kind, theirs.as_fd());
            let _ = read.reply.send(ours);
        }
    }
}

impl State {
    fn introduced(&mut self, offer: Offer) {
        self.offers.insert(offer.id(), (offer, Vec::new()));
    }

    fn typed(&mut self, offer: &ObjectId, name: String) {
        if let Some((_, types)) = self.offers.get_mut(offer)
            && types.len() < TYPES
        {
            types.push(name);
        }
    }

    fn selected(&mut self, selection: Selection, offer: Option<&ObjectId>) {
        let Some(at) = place(selection) else { return };
        let found = offer.and_then(|id| self.offers.remove(id));
        let held = &mut self.held[at];
        if let Some((old, _)) = held.offer.take() {
            old.destroy();
        }
        let first = !std::mem::replace(&mut held.seen, true);
        let types = found.as_ref().map(|(_, types)| types.clone()).unwrap_or_default();
        if types.contains(&self.mark) {
            // Ours, or what somebody keeps of ours.
            held.unconfirmed = false;
            held.passed_over = None;
            if let Some((offer, _)) = found {
                offer.destroy();
            }
            return;
        }
        held.offer = found;
        if held.unconfirmed {
            held.passed_over = Some(types);
        } else {
            self.happened.push(Event::Changed { selection, types, after: held.shown, first });
        }
    }

    fn wanted(&mut self, source: &ObjectId, kind: String, into: OwnedFd) {
        if kind == self.mark {
            return;
        }
        for (held, selection) in self.held.iter().zip(SELECTIONS) {
            if let Some((_, serial)) = held.source.as_ref().filter(|(ours, _)| ours.id() == *source) {
                let wanted = Wanted { selection, serial: *serial, kind, into };
                return self.happened.push(Event::Wanted(wanted));
            }
        }
    }

    fn cancelled(&mut self, source: &ObjectId) {
        for (held, selection) in self.held.iter_mut().zip(SELECTIONS) {
            if held.source.as_ref().is_some_and(|(ours, _)| ours.id() == *source) {
                if let Some((ours, _)) = held.source.take() {
                    ours.destroy();
                }
                // It was refused, or replaced before we were told of it: what came meanwhile is what there is.
                if std::mem::take(&mut held.unconfirmed)
                    && let Some(types) = held.passed_over.take()
                {
                    let after = held.shown;
                    self.happened.push(Event::Changed { selection, types, after, first: false });
                }
            }
        }
    }
}

impl Dispatch<wl_registry::WlRegistry, ()> for State {
    fn event(
        state: &mut Self,
        registry: &wl_registry::WlRegistry,
        event: wl_registry::Event,
        (): &(),
        _: &Connection,
        handle: &QueueHandle<Self>,
    ) {
        if let wl_registry::Event::Global { name, interface, version } = event {
            match interface.as_str() {
                "ext_data_control_manager_v1" => state.ext = Some((name, version)),
                "zwlr_data_control_manager_v1" => state.wlr = Some((name, version)),
                "wl_seat" if state.seat.is_none() => {
                    state.seat = Some(registry.bind(name, version.min(1), handle, ()));
                }
                _ => (),
            }
        }
    }
}

impl Dispatch<wl_seat::WlSeat, ()> for State {
    fn event(
        _: &mut Self,
        _: &wl_seat::WlSeat,
        _: wl_seat::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
    }
}
