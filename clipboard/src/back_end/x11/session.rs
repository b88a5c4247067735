//! The connection to an X server, with what its tasks share.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::Path;

use tokio::sync::{Notify, mpsc};
use x11rb::connection::Connection;
use x11rb::errors::{ConnectionError, ReplyError, ReplyOrIdError};
use x11rb::protocol::Event;
use x11rb::protocol::xfixes::{ConnectionExt as _, SelectionEventMask};
use x11rb::protocol::xproto::{
    Atom, AtomEnum, ChangeWindowAttributesAux, ConnectionExt as _, CreateWindowAux, EventMask, PropMode,
    Timestamp, Window, WindowClass,
};
use x11rb::rust_connection::{DefaultStream, RustConnection};
use x11rb::wrapper::ConnectionExt as _;

use super::authority;
use crate::back_end::BackEndError;
use crate::types::MARK;

x11rb::atom_manager! {
    /// The names that are always needed.
    pub(super) Atoms: AtomsCookie {
        CLIPBOARD, TARGETS, MULTIPLE, TIMESTAMP, ATOM_PAIR, INCR, TEXT, UTF8_STRING,
        _HOSPES_DATA, _HOSPES_TIME,
    }
}

/// Names of types that are remembered, for each direction: what programs offer is theirs to choose.
const NAMES: usize = 1024;

/// What happened to a window that a task asks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The owner answered: with something, or not.
    Converted(bool),
    /// The owner wrote a property.
    Written,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) connection: RustConnection,
    pub(super) window: Window,
    pub(super) selections: [Atom; 2],
    pub(super) atoms: Atoms,
    /// The last that the server told.
    pub(super) time: Cell<Timestamp>,
    /// A task waited for an answer, and may have read events with it.
    pub(super) read_elsewhere: Notify,
    /// Among what we show: whoever has it too keeps a copy of ours.
    pub(super) mark: Atom,
    asking: RefCell<HashMap<Window, mpsc::UnboundedSender<Step>>>,
    giving: RefCell<HashMap<(Window, Atom), mpsc::UnboundedSender<()>>>,
    names: RefCell<HashMap<Atom, String>>,
    atoms_of: RefCell<HashMap<String, Atom>>,
}

/// A connection to the server of a display of this machine, with the cookie that `authority` has for it. May block for as
/// long as the server does.
///
/// # Errors
/// [`BackEndError::Unreachable`].
pub fn open(display: &str, authority: Option<&Path>) -> Result<RustConnection, BackEndError> {
    let unreachable = |error: &dyn std::fmt::Display| BackEndError::Unreachable(error.to_string());
    let number = number(display).ok_or_else(|| unreachable(&"not a display of this machine"))?;
    let path = format!("/tmp/.X11-unix/X{number}");
    let stream = UnixStream::connect(path).map_err(|error| unreachable(&error))?;
    let (stream, _) = DefaultStream::from_unix_stream(stream).map_err(|error| unreachable(&error))?;
    let (name, cookie) = authority
        .and_then(|file| std::fs::read(file).ok())
        .and_then(|file| authority::cookie(&file, number))
        .unwrap_or_default();
    let connection = RustConnection::connect_to_stream_with_auth_info(stream, 0, name, cookie);
    connection.map_err(|error| unreachable(&error))
}

impl Session {
    /// Connects. May block for as long as the server does.
    pub(super) fn connect(display: &str, authority: Option<&Path>) -> Result<Self, BackEndError> {
        let unreachable = |error: &dyn std::fmt::Display| BackEndError::Unreachable(error.to_string());
        let connection = open(display, authority)?;
        Self::prepare(connection).map_err(|error| unreachable(&error))?.ok_or(BackEndError::Missing)
    }

    fn prepare(connection: RustConnection) -> Result<Option<Self>, ReplyOrIdError> {
        let atoms = Atoms::new(&connection)?;
        let version = connection.xfixes_query_version(5, 0)?;
        let mut nonce = [0; 8];
        let _ = getrandom::fill(&mut nonce);
        let mark: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
        let mark = connection.intern_atom(false, format!("{MARK}{mark}").as_bytes())?;
        let atoms = atoms.reply()?;
        let Ok(_) = version.reply() else { return Ok(None) };
        let selections = [atoms.CLIPBOARD, AtomEnum::PRIMARY.into()];
        let mark = mark.reply()?.atom;
        let root = connection.setup().roots[0].root;
        let window = new_window(&connection, root)?;
        for selection in selections {
            let mask = SelectionEventMask::SET_SELECTION_OWNER
                | SelectionEventMask::SELECTION_WINDOW_DESTROY
                | SelectionEventMask::SELECTION_CLIENT_CLOSE;
            connection.xfixes_select_selection_input(window, selection, mask)?;
        }
        connection.flush()?;
        Ok(Some(Self {
            connection,
            window,
            selections,
            atoms,
            time: Cell::new(x11rb::CURRENT_TIME),
            read_elsewhere: Notify::new(),
            mark,
            asking: RefCell::default(),
            giving: RefCell::default(),
            names: RefCell::default(),
            atoms_of: RefCell::default(),
        }))
    }

    /// A window of its own for a question, and what happens to it.
    pub(super) fn ask(&self) -> Result<(Window, mpsc::UnboundedReceiver<Step>), ReplyOrIdError> {
        let root = self.connection.setup().roots[0].root;
        let window = new_window(&self.connection, root)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        self.asking.borrow_mut().insert(window, sender);
        Ok((window, receiver))
    }

    /// The question is over, and what is left of its answer.
    pub(super) fn asked(&self, window: Window) {
        self.asking.borrow_mut().remove(&window);
        let _ = self.connection.destroy_window(window);
        let _ = self.connection.flush();
    }

    pub(super) fn route(&self, window: Window, step: Step) {
        if let Some(task) = self.asking.borrow().get(&window) {
            let _ = task.send(step);
        }
    }

    /// Listens for the requestor's taking of a property; `None` where it is being written to already.
    pub(super) fn give(&self, window: Window, property: Atom) -> Option<mpsc::UnboundedReceiver<()>> {
        let mut giving = self.giving.borrow_mut();
        if giving.contains_key(&(window, property)) {
            return None;
        }
        let mask = EventMask::PROPERTY_CHANGE | EventMask::STRUCTURE_NOTIFY;
        let aux = ChangeWindowAttributesAux::new().event_mask(mask);
        self.connection.change_window_attributes(window, &aux).ok()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        giving.insert((window, property), sender);
        Some(receiver)
    }

    /// Nothing more is written to that property.
    pub(super) fn given(&self, window: Window, property: Atom) {
        let mut giving = self.giving.borrow_mut();
        giving.remove(&(window, property));
        if !giving.keys().any(|(of, _)| *of == window) {
            let aux = ChangeWindowAttributesAux::new().event_mask(EventMask::NO_EVENT);
            let _ = self.connection.change_window_attributes(window, &aux);
        }
    }

    pub(super) fn taken(&self, window: Window, property: Atom) {
        if let Some(task) = self.giving.borrow().get(&(window, property)) {
            let _ = task.send(());
        }
    }

    /// A requestor is gone: its tasks hear no more, and end.
    pub(super) fn gone(&self, window: Window) {
        self.giving.borrow_mut().retain(|(of, _), _| *of != window);
    }

    /// Who owns a selection.
    pub(super) fn owner(&self, selection: Atom) -> Result<Window, ConnectionError> {
        let reply = self.connection.get_selection_owner(selection)?.reply();
        self.read_elsewhere.notify_one();
        match reply {
            Ok(reply) => Ok(reply.owner),
            Err(ReplyError::ConnectionError(error)) => Err(error),
            Err(ReplyError::X11Error(_)) => Ok(x11rb::NONE),
        }
    }

    /// The server's time (ICCCM 2.1: an owner is to name it). What else comes meanwhile goes to `other`.
    pub(super) fn now(&self, mut other: impl FnMut(Event)) -> Result<Timestamp, ConnectionError> {
        let (window, property) = (self.window, self.atoms._HOSPES_TIME);
        self.connection.change_property8(PropMode::APPEND, window, property, AtomEnum::STRING, &[])?;
        self.connection.flush()?;
        loop {
            match self.connection.wait_for_event()? {
                Event::PropertyNotify(event) if event.window == window && event.atom == property => {
                    self.time.set(event.time);
                    return Ok(event.time);
                }
                event => other(event),
            }
        }
    }

    /// The number of a name.
    pub(super) fn atom(&self, name: &str) -> Result<Atom, ConnectionError> {
        if let Some(atom) = self.atoms_of.borrow().get(name) {
            return Ok(*atom);
        }
        let reply = self.connection.intern_atom(false, name.as_bytes())?.reply();
        self.read_elsewhere.notify_one();
        let atom = match reply {
            Ok(reply) => reply.atom,
            Err(ReplyError::ConnectionError(error)) => return Err(error),
            Err(ReplyError::X11Error(_)) => x11rb::NONE,
        };
        let mut atoms = self.atoms_of.borrow_mut();
        if atoms.len() < NAMES {
            atoms.insert(name.to_owned(), atom);
        }
        Ok(atom)
    }

    /// The names of numbers; those that have none are left out.
    pub(super) fn names(&self, atoms: &[Atom]) -> Result<Vec<(String, Atom)>, ConnectionError> {
        let mut asked = Vec::new();
        for atom in atoms {
            let known = self.names.borrow().get(atom).cloned();
            let cookie = if known.is_none() { Some(self.connection.get_atom_name(*atom)?) } else { None };
            asked.push((*atom, known, cookie));
        }
        let mut found = Vec::new();
        for (atom, known, cookie) in asked {
            let name = match cookie {
                None => known,
                Some(cookie) => match cookie.reply() {
                    Ok(reply) => String::from_utf8(reply.name).ok(),
                    Err(ReplyError::ConnectionError(error)) => return Err(error),
                    Err(ReplyError::X11Error(_)) => None,
                },
            };
            let Some(name) = name else { continue };
            let mut names = self.names.borrow_mut();
            if names.len() < NAMES {
                names.insert(atom, name.clone());
            }
            found.push((name, atom));
        }
        self.read_elsewhere.notify_one();
        Ok(found)
    }
}

fn new_window(connection: &RustConnection, root: Window) -> Result<Window, ReplyOrIdError> {
    let window = connection.generate_id()?;
    let aux = CreateWindowAux::new().event_mask(EventMask::PROPERTY_CHANGE);
    connection.create_window(0, window, root, -1, -1, 1, 1, 0, WindowClass::INPUT_ONLY, 0, &aux)?;
    Ok(window)
}

/// The display's number, where it is one of this machine's: `:1`, `:1.0`, `unix:1`.
fn number(display: &str) -> Option<u16> {
    let (host, rest) = display.split_once(':')?;
    let number = rest.split_once('.').map_or(rest, |(number, _)| number);
    if host.is_empty() || host == "unix" { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_of_this_machine_has_a_number() {
        assert_eq!(number(":0"), Some(0));
        assert_eq!(number(":12.1"), Some(12));
        assert_eq!(number("unix:3"), Some(3));
        for other in ["", "0", "box:0", ":", ":x", ":-1", ":70000"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
