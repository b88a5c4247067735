//! A guest's vsock device with the sockets that lead to it: all on the thread of its slot.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use mio::event::Event;
use mio::{Registry, Token};

use super::slot::{Make, Resident};
use crate::virtio::Device;
use crate::virtio::vsock::lobby::{Lobby, Of};
use crate::virtio::vsock::sibling::Switch;
use crate::virtio::vsock::uds::{Sockets, UdsError, UdsHost, dial};
use crate::virtio::vsock::{Limits, Vsock};

/// Where a guest's streams begin and end on the host. The sockets outlive a reset: who
/// connects meanwhile is answered by the machine that follows.
pub struct Streams {
    cid: u64,
    path: PathBuf,
    sockets: Sockets,
    limits: Limits,
}

impl Streams {
    /// For the guest with this cid: listens at `path`, where clients say which port they want, and for each port of
    /// `ports` at a path of its own. What the guest dials is `path` with "_PORT" behind it.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn bind(cid: u64, path: &Path, ports: &[(u32, PathBuf)], limits: Limits) -> Result<Self, UdsError> {
        Ok(Self { cid, path: path.to_owned(), sockets: Sockets::bind(path, ports)?, limits })
    }
}

struct Inhabitant {
    device: Vsock,
    lobby: Lobby,
}

/// What makes the device.
pub fn make(streams: Arc<Streams>) -> Make {
    Box::new(move |registry| Ok(Box::new(Inhabitant::new(&streams, registry)?)))
}

impl Inhabitant {
    fn new(streams: &Streams, registry: &Registry) -> io::Result<Self> {
        let path = streams.path.clone();
        let host = UdsHost::new(
            &streams.path,
            Box::new(move |port| dial(&path, port)),
            registry.try_clone()?,
            Box::new(|id| token(Of::Stream, id as usize)),
            // A machine has one guest.
            Switch::new(std::iter::once(streams.cid)).member(0),
        );
        let device = Vsock::new(streams.cid, streams.limits, Box::new(host)).map_err(io::Error::other)?;
        let lobby = Lobby::open(&streams.sockets, registry, Box::new(token))?;
        Ok(Self { device, lobby })
    }
}

impl Resident for Inhabitant {
    fn device(&mut self) -> &mut dyn Device {
        &mut self.device
    }

    fn news(&mut self, news: &Event) {
        if let Some((of, id)) = parse(news.token()) {
            self.lobby.news(of, id, news, &mut self.device);
        }
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.device.deadline().into_iter().chain(self.lobby.deadline()).min()
    }

    fn expire(&mut self) {
        self.lobby.expire(&mut self.device);
    }
}

fn token(of: Of, id: usize) -> Token {
    Token((of as usize) << 32 | id)
}

fn parse(token: Token) -> Option<(Of, usize)> {
    let of = *[Of::Stream, Of::Listener, Of::Client].get(token.0 >> 32)?;
    Some((of, token.0 & 0xffff_ffff))
}
