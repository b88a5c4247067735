//! The host's side as Unix sockets, in Firecracker's manner.
//!
//! A client connects to the main socket, writes `CONNECT <port>` and a newline, and reads `OK <port>` when the guest
//! has agreed; on a failure it reads `ERR <reason>`, or the end. What it writes after the newline goes to the guest.
//! A socket given for one port leads straight there, with no words exchanged. A guest that connects to the host's
//! port P reaches whoever listens at `PATH_P`.
//!
//! Who may connect is decided by the sockets' file permissions: they are made for their owner alone.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, str};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use slab::Slab;
use thiserror::Error;

use super::host::{Dial, DialError, Greeting, Host};
use super::sibling::Member;
use super::spec::HOST_CID;
use super::{Key, StreamId};
use crate::io::{Endpoint, discard, peek};

/// The longest line a client may write, its newline included.
const MAX_LINE: usize = 32;

/// How long a client may take to write its line; people type it, too.
const LINE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to wait when the process has no descriptors left for new clients.
const RETRY_ACCEPT: Duration = Duration::from_millis(100);

/// How long somebody who listens at a path may take to hang up before he counts as staying there.
const GOING: Duration = Duration::from_millis(300);

/// Why a socket cannot be used.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum UdsError {
    #[error("Another program listens at {path}")]
    InUse { path: PathBuf },
    #[error("There is something that is no socket at {path}")]
    NotASocket { path: PathBuf },
    #[error("Failed to listen at {path}")]
    Bind { path: PathBuf, source: io::Error },
}

/// Listens at `path` for the owner alone; takes the place of a socket that nobody serves any more.
pub fn bind(path: &Path) -> Result<net::UnixListener, UdsError> {
    let fail = |source| UdsError::Bind { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(UdsError::NotASocket { path: path.to_owned() });
        }
        Ok(_) if net::UnixStream::connect(path).is_ok_and(|stream| !hangs_up(stream)) => {
            return Err(UdsError::InUse { path: path.to_owned() });
        }
        Ok(_) => fs::remove_file(path).map_err(fail)?,
        Err(_) => {}
    }
    let listener = net::UnixListener::bind(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    Ok(listener)
}

/// Whoever listens is about to end, as what a killed device leaves behind for a moment does.
fn hangs_up(mut stream: net::UnixStream) -> bool {
    let waits = |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let read = stream.set_read_timeout(Some(GOING)).and_then(|()| stream.read(&mut [0]));
    read.map_or_else(|error| !waits(&error), |count| count == 0)
}

/// A client that knows which of the guest's ports it wants.
pub struct Arrival {
    /// Its stream, not registered anywhere.
    pub stream: UnixStream,
    /// The guest's port.
    pub port: u32,
    /// What it expects to read first.
    pub greeting: Greeting,
}

/// The sockets that lead to a guest, open. Their paths go when this is dropped.
#[derive(Debug)]
pub struct Sockets(Vec<Open>);

#[derive(Debug)]
struct Open {
    socket: net::UnixListener,
    path: PathBuf,
    /// The guest's port it leads to; `None` where clients say it themselves.
    port: Option<u32>,
}

impl Sockets {
    /// Listens at `path`, and for each port at a path of its own.
    pub fn bind(path: &Path, ports: &[(u32, PathBuf)]) -> Result<Self, UdsError> {
        let mut sockets = Self(Vec::new());
        let others = ports.iter().map(|(port, path)| (Some(*port), path.as_path()));
        for (port, path) in std::iter::once((None, path)).chain(others) {
            sockets.0.push(Open { socket: bind(path)?, path: path.to_owned(), port });
        }
        Ok(sockets)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for open in &self.0 {
            drop(fs::remove_file(&open.path));
        }
    }
}

struct Listener {
    socket: UnixListener,
    port: Option<u32>,
}

struct Client {
    stream: UnixStream,
    serial: u64,
}

/// The sockets of one guest that clients on the host connect to.
pub struct Reception {
    listeners: Vec<Listener>,
    clients: Slab<Client>,
    deadlines: VecDeque<(Instant, usize, u64)>,
    serials: u64,
    retry: Option<Instant>,
}

impl Reception {
    /// Receives whoever comes to these sockets; who waits there already, too.
    pub fn new(sockets: &Sockets) -> io::Result<Self> {
        let listener = |open: &Open| {
            Ok(Listener { socket: UnixListener::from_std(open.socket.try_clone()?), port: open.port })
        };
        let listeners = sockets.0.iter().map(listener).collect::<io::Result<_>>()?;
        Ok(Self { listeners, clients: Slab::new(), deadlines: VecDeque::new(), serials: 0, retry: None })
    }

    /// Reports new clients under the tokens that `token` makes of the listeners' numbers.
    pub fn register(&mut self, registry: &Registry, token: impl Fn(usize) -> Token) -> io::Result<()> {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            registry.register(&mut listener.socket, token(index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// Takes the clients that wait at listener `index`. Those with a line to write are reported under `token`.
    pub fn accept(
        &mut self,
        index: usize,
        registry: &Registry,
        token: impl Fn(usize) -> Token,
    ) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let Some(listener) = self.listeners.get(index) else { return arrivals };
        loop {
            let stream = match listener.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => continue,
                    ErrorKind::WouldBlock => break,
                    _ => {
                        // Readiness is told once only, so we must come back by ourselves.
                        tracing::error!(%error, "Failed to accept a client; trying again");
                        self.retry = Some(Instant::now() + RETRY_ACCEPT);
                        break;
                    }
                },
            };
            if let Some(port) = listener.port {
                arrivals.push(Arrival { stream, port, greeting: Greeting::None });
                continue;
            }
            self.serials += 1;
            let id = self.clients.insert(Client { stream, serial: self.serials });
            let client = &mut self.clients[id];
            if let Err(error) = registry.register(&mut client.stream, token(id), Interest::READABLE) {
                tracing::error!(%error, "Failed to watch a client");
                self.clients.remove(id);
                continue;
            }
            self.deadlines.push_back((Instant::now() + LINE_TIMEOUT, id, self.serials));
        }
        arrivals
    }

    /// Reads the line of a client, if it is all there.
    pub fn read_line(&mut self, id: usize, registry: &Registry) -> Option<Arrival> {
        let client = self.clients.get_mut(id)?;
        let mut bytes = [0; MAX_LINE];
        let outcome = match peek(&client.stream, &mut bytes) {
            Ok(0) => Line::Bad,
            Ok(count) => parse_line(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Line::Incomplete
            }
            Err(_) => Line::Bad,
        };
        match outcome {
            Line::Incomplete => None,
            Line::Bad => {
                let mut client = self.clients.remove(id);
                drop(client.stream.write(b"ERR expected: CONNECT <port>\n"));
                None
            }
            Line::Connect { port, length } => {
                let mut client = self.clients.remove(id);
                // Only the line: what follows it is the guest's.
                let taken = discard(&client.stream, &mut bytes[..length]);
                if taken.is_err() || registry.deregister(&mut client.stream).is_err() {
                    return None;
                }
                Some(Arrival { stream: client.stream, port, greeting: Greeting::Line })
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn deadline(&mut self) -> Option<Instant> {
        while let Some((_, id, serial)) = self.deadlines.front()
            && self.clients.get(*id).is_none_or(|client| client.serial != *serial)
        {
            self.deadlines.pop_front();
        }
        self.deadlines.front().map(|entry| entry.0).into_iter().chain(self.retry).min()
    }

    /// Drops clients that never wrote their line. True: look at the listeners again.
    pub fn expire(&mut self, now: Instant) -> bool {
        while let Some((_, id, serial)) = self.deadlines.pop_front_if(|entry| entry.0 <= now) {
            if self.clients.get(id).is_some_and(|client| client.serial == serial) {
                self.clients.remove(id);
            }
        }
        self.retry.take_if(|at| *at <= now).is_some()
    }

    /// How many listeners there are.
    pub fn listeners(&self) -> usize {
        self.listeners.len()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Connect { port: u32, length: usize },
    Incomplete,
    Bad,
}

fn parse_line(bytes: &[u8]) -> Line {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_LINE { Line::Incomplete } else { Line::Bad };
    };
    let port = str::from_utf8(&bytes[..end]).ok().and_then(|line| {
        let mut words = line.split_ascii_whitespace();
        let verb = words.next()?;
        let port = words.next()?.parse().ok()?;
        (verb.eq_ignore_ascii_case("CONNECT") && words.next().is_none()).then_some(port)
    });
    port.map_or(Line::Bad, |port| Line::Connect { port, length: end + 1 })
}

/// Connects to whoever listens for a port of the guest's host, and waits for nobody.
pub fn dial(stem: &Path, port: u32) -> io::Result<net::UnixStream> {
    UnixStream::connect(port_path(stem, port)).map(|stream| OwnedFd::from(stream).into())
}

fn port_path(stem: &Path, port: u32) -> PathBuf {
    let mut path = stem.to_owned().into_os_string();
    path.push(format!("_{port}"));
    path.into()
}

/// What dials a port for a guest.
pub type Dialer = Box<dyn Fn(u32) -> io::Result<net::UnixStream>>;

/// Reaches the host's listeners for a guest, and watches streams with `mio`.
pub struct UdsHost {
    path: PathBuf,
    dialer: Dialer,
    registry: Registry,
    token: Box<dyn Fn(StreamId) -> Token>,
    siblings: Member,
}

impl UdsHost {
    /// Streams are reported to `registry` under the tokens that `token` makes of their ids.
    pub fn new(
        path: &Path,
        dialer: Dialer,
        registry: Registry,
        token: Box<dyn Fn(StreamId) -> Token>,
        siblings: Member,
    ) -> Self {
        Self { path: path.to_owned(), dialer, registry, token, siblings }
    }
}

impl Host for UdsHost {
    fn dial(&mut self, key: &Key) -> Result<Dial, DialError> {
        if key.peer_cid != HOST_CID {
            return self.siblings.dial(key);
        }
        let path = || port_path(&self.path, key.peer_port).display().to_string();
        let dialed = (self.dialer)(key.peer_port).and_then(|stream| {
            stream.set_nonblocking(true)?;
            Ok(UnixStream::from_std(stream))
        });
        match dialed {
            Ok(stream) => Ok(Dial::Ready(Endpoint::Unix(stream))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(DialError::Busy { path: path() }),
            Err(source) => Err(DialError::Refused { path: path(), source }),
        }
    }

    fn watch(&mut self, id: StreamId, endpoint: &mut Endpoint) -> io::Result<()> {
        match endpoint {
            Endpoint::Unix(stream) => {
                let interest = Interest::READABLE | Interest::WRITABLE;
                self.registry.register(stream, (self.token)(id), interest)
            }
            Endpoint::Pipe(pipe) => {
                pipe.set_token((self.token)(id).0);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_read_to_its_newline_and_no_further() {
        assert_eq!(parse_line(b"CONNECT 52\nhello"), Line::Connect { port: 52, length: 11 });
        assert_eq!(parse_line(b"connect 4294967295\r\n"), Line::Connect { port: u32::MAX, length: 20 });
        assert_eq!(parse_line(b"CONNECT 5"), Line::Incomplete);
    }

    #[test]
    fn anything_but_a_port_is_refused() {
        for line in
            ["\n", "CONNECT\n", "CONNECT 4294967296\n", "CONNECT -1\n", "CONNECT 1 2\n", "GET / HTTP/1.1\n"]
        {
            assert_eq!(parse_line(line.as_bytes()), Line::Bad, "{line:?}");
        }
        assert_eq!(parse_line(&[b' '; MAX_LINE]), Line::Bad);
        assert_eq!(parse_line(b"CONNECT \xff\n"), Line::Bad);
    }
}
