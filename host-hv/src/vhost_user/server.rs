//! The event loop: one thread, one or more guests.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use thiserror::Error;

use super::vmm::Vmm;
use crate::io::Endpoint;
use crate::virtio::Device;
use crate::virtio::vsock::lobby::{Lobby, Of};
use crate::virtio::vsock::sibling::{Member, Switch};
use crate::virtio::vsock::uds::{Dialer, Sockets, UdsError, UdsHost, bind};
use crate::virtio::vsock::{ConnectError, Greeting, Limits, Vsock};

/// Why the server cannot start or go on.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ServerError {
    #[error(transparent)]
    Socket(#[from] UdsError),
    #[error(transparent)]
    Device(#[from] ConnectError),
    #[error("Failed to wait for events")]
    Poll(#[source] io::Error),
}

/// One guest to serve.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Its cid.
    pub cid: u64,
    /// Where its VMM connects.
    pub socket: PathBuf,
    /// Where clients on the host connect.
    pub uds: PathBuf,
    /// Sockets that lead to one port each.
    pub ports: Vec<(u32, PathBuf)>,
    /// What it may use up.
    pub limits: Limits,
}

struct Guest {
    spec: GuestSpec,
    device: Rc<RefCell<Vsock>>,
    lobby: Lobby,
    /// Kept until the guest is not served any more.
    _sockets: Sockets,
    listener: net::UnixListener,
    vmm: Option<Vmm<Vsock>>,
}

/// Serves guests until told to stop.
pub struct Server {
    poll: Poll,
    guests: Vec<Guest>,
    siblings: Switch,
    stop: Option<net::UnixStream>,
    once: bool,
}

/// What a token stands for, within a guest.
#[derive(Clone, Copy)]
enum Kind {
    Lobby(Of),
    VmmListener,
    Vmm,
    Kick,
    Stop,
}

const KINDS: [Kind; 7] = [
    Kind::Lobby(Of::Stream),
    Kind::Lobby(Of::Listener),
    Kind::Lobby(Of::Client),
    Kind::VmmListener,
    Kind::Vmm,
    Kind::Kick,
    Kind::Stop,
];

fn token(guest: usize, kind: Kind, id: usize) -> Token {
    let kind = match kind {
        Kind::Lobby(of) => of as usize,
        Kind::VmmListener => 3,
        Kind::Vmm => 4,
        Kind::Kick => 5,
        Kind::Stop => 6,
    };
    Token(guest << 40 | kind << 32 | id)
}

fn parse(token: Token) -> Option<(usize, Kind, usize)> {
    let kind = *KINDS.get(token.0 >> 32 & 0xff)?;
    Some((token.0 >> 40, kind, token.0 & 0xffff_ffff))
}

impl Server {
    /// Opens all sockets. With `once`, [`run`](Self::run) returns when the VMM of any guest has gone. `dialer` makes of a
    /// guest's number what reaches the host's listeners for it.
    pub fn new(
        specs: Vec<GuestSpec>,
        once: bool,
        dialer: impl Fn(usize, &GuestSpec) -> Dialer,
    ) -> Result<Self, ServerError> {
        let poll = Poll::new().map_err(ServerError::Poll)?;
        let siblings = Switch::new(specs.iter().map(|spec| spec.cid));
        let mut guests = Vec::new();
        for (number, spec) in specs.into_iter().enumerate() {
            let dialer = dialer(number, &spec);
            guests.push(Guest::new(number, spec, dialer, &poll, siblings.member(number))?);
        }
        Ok(Self { poll, guests, siblings, stop: None, once })
    }

    /// Makes [`run`](Self::run) return when `stop` becomes readable.
    pub fn stop_on(&mut self, stop: net::UnixStream) -> Result<(), ServerError> {
        watch(&self.poll, stop.as_raw_fd(), token(0, Kind::Stop, 0)).map_err(ServerError::Poll)?;
        self.stop = Some(stop);
        Ok(())
    }

    /// Serves.
    pub fn run(&mut self) -> Result<(), ServerError> {
        let mut events = Events::with_capacity(256);
        let mut more = false;
        loop {
            let timeout = if more { Some(Duration::ZERO) } else { self.timeout() };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(ServerError::Poll(error)),
                _ => {}
            }
            for event in &events {
                let Some((number, kind, id)) = parse(event.token()) else { continue };
                let Some(guest) = self.guests.get_mut(number) else { continue };
                if matches!(kind, Kind::Stop) {
                    return Ok(());
                }
                let gone = guest.handle(number, kind, id, event, &self.poll);
                if gone && self.once {
                    return Ok(());
                }
            }
            self.expire();
            more = false;
            for guest in &self.guests {
                more |= guest.device.borrow_mut().run();
            }
            more |= self.pass_between_guests();
        }
    }

    /// Hands over what guests did to each other. True: some guest has to look at it.
    fn pass_between_guests(&mut self) -> bool {
        let mut more = false;
        while let Some(call) = self.siblings.next_call() {
            let Some(guest) = self.guests.get(call.to) else { continue };
            let endpoint = Endpoint::Pipe(call.pipe);
            let result = guest.device.borrow_mut().connect(endpoint, call.port, call.from, Greeting::None);
            if let Err(error) = result {
                tracing::warn!(cid = guest.spec.cid, %error, "Another guest is turned away");
            }
            more = true;
        }
        for woken in self.siblings.take_woken() {
            if let Some((number, Kind::Lobby(Of::Stream), id)) = parse(Token(woken))
                && let Some(guest) = self.guests.get(number)
            {
                guest.device.borrow_mut().pipe_ready(u32::try_from(id).unwrap_or(u32::MAX));
                more = true;
            }
        }
        more
    }

    fn timeout(&mut self) -> Option<Duration> {
        let next = self
            .guests
            .iter_mut()
            .flat_map(|guest| [guest.device.borrow_mut().deadline(), guest.lobby.deadline()])
            .flatten()
            .min()?;
        // One more millisecond: a wait that ends early would only be repeated.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    fn expire(&mut self) {
        for guest in &mut self.guests {
            guest.lobby.expire(&mut guest.device.borrow_mut());
        }
    }
}

impl Guest {
    fn new(
        number: usize,
        spec: GuestSpec,
        dialer: Dialer,
        poll: &Poll,
        siblings: Member,
    ) -> Result<Self, ServerError> {
        let registry = poll.registry().try_clone().map_err(ServerError::Poll)?;
        let stream_token = Box::new(move |id| token(number, Kind::Lobby(Of::Stream), id as usize));
        let host = UdsHost::new(&spec.uds, dialer, registry, stream_token, siblings);
        let device = Vsock::new(spec.cid, spec.limits, Box::new(host))?;
        let sockets = Sockets::bind(&spec.uds, &spec.ports)?;
        let tokens = Box::new(move |of, id| token(number, Kind::Lobby(of), id));
        let lobby = Lobby::open(&sockets, poll.registry(), tokens).map_err(ServerError::Poll)?;
        let listener = bind(&spec.socket)?;
        watch(poll, listener.as_raw_fd(), token(number, Kind::VmmListener, 0)).map_err(ServerError::Poll)?;
        Ok(Self {
            spec,
            device: Rc::new(RefCell::new(device)),
            lobby,
            _sockets: sockets,
            listener,
            vmm: None,
        })
    }

    /// True: the VMM has gone.
    fn handle(&mut self, number: usize, kind: Kind, id: usize, event: &Event, poll: &Poll) -> bool {
        match kind {
            Kind::Lobby(of) => self.lobby.news(of, id, event, &mut self.device.borrow_mut()),
            Kind::Kick => self.device.borrow_mut().kick(id),
            Kind::Stop => {}
            Kind::VmmListener => self.accept_vmm(number, poll),
            Kind::Vmm => return self.serve_vmm(number, poll),
        }
        false
    }

    fn accept_vmm(&mut self, number: usize, poll: &Poll) {
        // While one VMM is served the next waits in the listener's queue.
        if self.vmm.is_some() {
            return;
        }
        let Ok((stream, _)) = self.listener.accept() else { return };
        let kick_token = Box::new(move |ring| token(number, Kind::Kick, ring));
        let name = format!("cid {}", self.spec.cid);
        let own = token(number, Kind::Vmm, 0);
        match Vmm::new(stream, self.device.clone(), poll.registry(), own, kick_token, name) {
            Ok(vmm) => self.vmm = Some(vmm),
            Err(error) => tracing::error!(cid = self.spec.cid, %error, "Failed to watch the VMM"),
        }
    }

    /// Handles all requests that wait. True: the VMM has gone.
    fn serve_vmm(&mut self, number: usize, poll: &Poll) -> bool {
        if !self.vmm.as_mut().is_some_and(Vmm::serve) {
            return false;
        }
        self.vmm = None;
        // The next one may wait already, and its knock was heard before.
        self.accept_vmm(number, poll);
        true
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.spec.socket));
    }
}

fn watch(poll: &Poll, fd: RawFd, token: Token) -> io::Result<()> {
    poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)
}
