//! The threads of `hospes forward`: one for each listener, and one for each call.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hospes_protocol::forward::{Accept, Address, Incoming, Listen, Listening, Refuse};
use hospes_protocol::frame::{self, FrameId};
use nix::sys::socket::{MsgFlags, send};
use serde::Serialize;

use crate::client::{Client, ClientError};
use crate::command_error::CommandError;
use crate::connection::Connection;
use crate::forward::call;
use crate::forward::listener::{Listener, listen};
use crate::forward::local::{Local, Socket};
use crate::forward::pump::pump;
use crate::forward::spec::{self, Forward};
use crate::printable;
use crate::ui;

/// Connections that are being opened at once. A guest admits [`HANDSHAKES`](hospes_protocol::limits::HANDSHAKES) from
/// everybody.
const DIALLING: usize = 16;
/// Between tries to listen in a guest that went away: first, and at most.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Between tries after this process has run out of descriptors.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What carries calls.
#[derive(Clone)]
pub(super) struct Carrier(Arc<Shared>);

struct Shared {
    client: Client,
    user: String,
    tell: Tell,
    dialling: Mutex<usize>,
    dialled: Condvar,
}

impl Carrier {
    pub(super) fn new(client: Client, user: String, tell: Tell) -> Self {
        Self(Arc::new(Shared { client, user, tell, dialling: Mutex::new(0), dialled: Condvar::new() }))
    }

    /// Makes sure that the VM answers and is the one we know.
    pub(super) fn check(&self) -> Result<(), CommandError> {
        let mut connection = self.0.client.open(&[])?;
        frame::put_raw(FrameId::BYE, 0, &[], connection.queue());
        // It proved who it is: whether it hears that this was all changes nothing.
        let _ = connection.try_flush();
        Ok(())
    }

    /// `-L`: listens on this machine, until the process ends.
    pub(super) fn listen_here(&self, spec: &Forward) -> Result<Vec<Arc<Listener>>, CommandError> {
        let (listeners, on) = listen(&spec.listen).map_err(|error| {
            let failed = CommandError::io(format_args!("Cannot listen on {}", spec.listen), &error);
            match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    failed.hint("Something listens there already: choose another, or port 0")
                }
                _ => failed,
            }
        })?;
        self.0.tell.listening(Direction::ToGuest, &on, &spec.to)?;
        let listeners: Vec<_> = listeners.into_iter().map(Arc::new).collect();
        for listener in &listeners {
            let (carrier, listener, to) = (self.clone(), Arc::clone(listener), spec.to.clone());
            thread::spawn(move || carrier.take_callers(&listener, &to));
        }
        Ok(listeners)
    }

    fn take_callers(&self, listener: &Listener, to: &Address) {
        loop {
            match listener.accept() {
                Ok((socket, from)) => {
                    let (carrier, to) = (self.clone(), to.clone());
                    spawn(move || carrier.call(socket, &from, &to));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
                Err(error) => {
                    self.0.tell.failed(
                        Direction::ToGuest,
                        "",
                        to,
                        &CommandError::io("Cannot take a caller", &error),
                    );
                    thread::sleep(EXHAUSTED);
                }
            }
        }
    }

    /// Leads one caller to the guest.
    fn call(&self, mut socket: Socket, from: &str, to: &Address) {
        let carried = match self.dial(|client, user| call(client, user, to)) {
            Ok(connection) => pump(connection, &mut socket).map_err(CommandError::from),
            Err(error) => {
                socket.reset();
                Err(CommandError::from(error))
            }
        };
        if let Err(error) = carried {
            self.0.tell.failed(Direction::ToGuest, from, to, &error);
        }
    }

    /// `-R`: listens in the guest. The first failure is the caller's, later ones are told and tried again.
    pub(super) fn listen_there(&self, mut spec: Forward) -> Result<(), CommandError> {
        let connection = self.open_listener(&mut spec)?;
        let carrier = self.clone();
        thread::spawn(move || carrier.stay(connection, spec));
        Ok(())
    }

    fn open_listener(&self, spec: &mut Forward) -> Result<Connection, CommandError> {
        let mut operation = Vec::new();
        let on = spec.listen.clone();
        frame::put(FrameId::FORWARD_LISTEN, &Listen { user: self.0.user.clone(), on }, &mut operation);
        let mut connection = self.dial(|client, _| client.open(&operation))?;
        let Listening { on } = connection.expect(FrameId::FORWARD_LISTENING)?.decode()?;
        // A guest that listens somewhere else than it was asked is not believed; only port zero is its own to choose.
        let same = match (&spec.listen, &on) {
            (Address::Tcp { host, port: 0 }, Address::Tcp { host: told, port }) => host == told && *port > 0,
            (asked, told) => asked == told,
        };
        if !same {
            return Err(CommandError::new(
                "protocol",
                format_args!("The guest listens on {on}, asked was another"),
            ));
        }
        // The same port after the VM was away.
        spec.listen = on;
        self.0.tell.listening(Direction::ToHost, &spec.listen, &spec.to)?;
        Ok(connection)
    }

    /// Takes the guest's callers for good: where the connection is lost, listens again.
    fn stay(&self, mut connection: Connection, mut spec: Forward) {
        loop {
            let error = self.take_guests_callers(&mut connection, &spec);
            drop(connection);
            self.0.tell.lost(&spec.listen, &error);
            let mut pause = RETRY;
            connection = loop {
                thread::sleep(pause);
                pause = (pause * 2).min(RETRY_MAX);
                if let Ok(connection) = self.open_listener(&mut spec) {
                    break connection;
                }
            };
        }
    }

    fn take_guests_callers(&self, connection: &mut Connection, spec: &Forward) -> CommandError {
        // Nothing else is written to the connection: refusals go out from the calls' threads.
        let refusals = match connection.as_fd().try_clone_to_owned() {
            Ok(fd) => Arc::new(Mutex::new(fd)),
            Err(error) => return CommandError::io("Cannot go on", &error),
        };
        loop {
            let frame = match connection.frame() {
                Ok(frame) => frame,
                Err(error) => return error.into(),
            };
            match frame.id {
                FrameId::FORWARD_INCOMING => {
                    let Incoming { call, from } = match frame.decode() {
                        Ok(incoming) => incoming,
                        Err(error) => return error.into(),
                    };
                    let (carrier, to) = (self.clone(), spec.to.clone());
                    let refusals = Arc::clone(&refusals);
                    spawn(move || carrier.take(call, &from, &to, &refusals));
                }
                FrameId::FAILED => {
                    return match frame.decode() {
                        Ok(error) => CommandError::refused(&error),
                        Err(error) => error.into(),
                    };
                }
                // What a newer guest has to tell of a listener beside its calls.
                _ => (),
            }
        }
    }

    /// Leads one of the guest's callers to this machine's address.
    fn take(&self, number: [u8; 16], from: &str, to: &Address, refusals: &Mutex<OwnedFd>) {
        let refuse = || {
            let mut out = Vec::new();
            frame::put(FrameId::FORWARD_REFUSE, &Refuse { call: number }, &mut out);
            let fd = refusals.lock().unwrap_or_else(PoisonError::into_inner);
            // Where it does not arrive, the guest hangs up on its caller a little later.
            let _ = send(fd.as_raw_fd(), &out, MsgFlags::empty());
        };
        let carried = match Socket::connect(to) {
            Ok(mut socket) => {
                let mut operation = Vec::new();
                let accept = Accept { user: self.0.user.clone(), call: number };
                frame::put(FrameId::FORWARD_ACCEPT, &accept, &mut operation);
                match self.dial(|client, _| client.open(&operation)) {
                    Ok(connection) => pump(connection, &mut socket).map_err(CommandError::from),
                    Err(error) => {
                        refuse();
                        Err(CommandError::from(error))
                    }
                }
            }
            Err(error) => {
                refuse();
                Err(CommandError::io(format_args!("Cannot connect to {to} here"), &error))
            }
        };
        if let Err(error) = carried {
            self.0.tell.failed(Direction::ToHost, from, to, &error);
        }
    }

    /// Opens a connection, a few at a time.
    fn dial<T>(&self, open: impl FnOnce(&Client, &str) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let shared = &self.0;
        let lock = || shared.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = lock();
        while *count >= DIALLING {
            count = shared.dialled.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        *count += 1;
        drop(count);
        let opened = open(&shared.client, &shared.user);
        *lock() -= 1;
        shared.dialled.notify_one();
        opened
    }
}

/// Carries one call on a thread of its own; where there can be none, its sockets close.
fn spawn(act: impl FnOnce() + Send + 'static) {
    // 64 KiB would do; what is not touched costs nothing.
    let _ = thread::Builder::new().stack_size(256 * 1024).spawn(act);
}

/// Which way calls go.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Direction {
    ToGuest,
    ToHost,
}

/// How events are told.
pub(super) struct Tell {
    pub(super) json: bool,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'e> {
    Listening { direction: Direction, listen: String, port: Option<u16>, to: String },
    Failed { direction: Direction, from: &'e str, to: String, message: &'e str, hint: Option<&'e str> },
    Lost { listen: String, message: &'e str },
}

impl Tell {
    fn listening(&self, direction: Direction, on: &Address, to: &Address) -> Result<(), CommandError> {
        if self.json {
            let (listen, port, to) = (on.to_string(), spec::port(on), to.to_string());
            return ui::json(&Event::Listening { direction, listen, port, to });
        }
        match direction {
            Direction::ToGuest => ui::line(format_args!("{on} here leads to {to} in the guest")),
            Direction::ToHost => ui::line(format_args!("{on} in the guest leads to {to} here")),
        }
    }

    fn failed(&self, direction: Direction, from: &str, to: &Address, error: &CommandError) {
        let from = printable::line(from);
        if self.json {
            let event = Event::Failed {
                direction,
                from: &from,
                to: to.to_string(),
                message: &error.message,
                hint: error.hint.as_deref(),
            };
            // A reader that went away does not end the forward.
            let _ = ui::json(&event);
        } else if from.is_empty() {
            ui::warn(&error.message);
        } else {
            ui::warn(format_args!("{from}: {}", error.message));
        }
    }

    fn lost(&self, listen: &Address, error: &CommandError) {
        if self.json {
            let _ = ui::json(&Event::Lost { listen: listen.to_string(), message: &error.message });
        } else {
            ui::warn(format_args!(
                "{listen} in the guest is lost and will be opened again once it answers: {}",
                error.message
            ));
        }
    }
}
