//! Where programs of the host come in: the sockets of one guest, served by whichever loop has the device.

use std::io;
use std::time::Instant;

use mio::event::Event;
use mio::{Registry, Token};

use super::spec::HOST_CID;
use super::uds::{Arrival, Reception, Sockets};
use super::{Readiness, Vsock};
use crate::io::Endpoint;

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// A connection of the device's, by its id.
    Stream,
    /// A socket that clients connect to, by its number.
    Listener,
    /// A client that has not said yet which port it wants.
    Client,
}

/// Makes tokens of what they stand for.
pub type Tokens = Box<dyn Fn(Of, usize) -> Token>;

/// The sockets, and the clients that have not come to the device yet.
pub struct Lobby {
    reception: Reception,
    registry: Registry,
    token: Tokens,
}

impl Lobby {
    /// Receives clients at these sockets; news of them come to `registry`.
    ///
    /// # Errors
    /// A socket cannot be watched.
    pub fn open(sockets: &Sockets, registry: &Registry, token: Tokens) -> io::Result<Self> {
        let mut reception = Reception::new(sockets)?;
        reception.register(registry, |id| token(Of::Listener, id))?;
        Ok(Self { reception, registry: registry.try_clone()?, token })
    }

    /// Something has news, which the device may hear of.
    pub fn news(&mut self, of: Of, id: usize, news: &Event, device: &mut Vsock) {
        match of {
            Of::Stream => {
                let readiness = Readiness {
                    readable: news.is_readable(),
                    writable: news.is_writable(),
                    ended: news.is_read_closed(),
                    hung_up: news.is_write_closed(),
                };
                device.stream_ready(u32::try_from(id).unwrap_or(u32::MAX), readiness);
            }
            Of::Listener => self.accept(id, device),
            Of::Client => {
                if let Some(arrival) = self.reception.read_line(id, &self.registry) {
                    connect(arrival, device);
                }
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn deadline(&mut self) -> Option<Instant> {
        self.reception.deadline()
    }

    /// Gives up on clients that say nothing, and looks again for those that could not be let in.
    pub fn expire(&mut self, device: &mut Vsock) {
        let now = Instant::now();
        if self.deadline().is_some_and(|at| at <= now) && self.reception.expire(now) {
            for listener in 0..self.reception.listeners() {
                self.accept(listener, device);
            }
        }
    }

    fn accept(&mut self, listener: usize, device: &mut Vsock) {
        let token = &self.token;
        for arrival in self.reception.accept(listener, &self.registry, |id| token(Of::Client, id)) {
            connect(arrival, device);
        }
    }
}

fn connect(arrival: Arrival, device: &mut Vsock) {
    let Arrival { stream, port, greeting } = arrival;
    if let Err(error) = device.connect(Endpoint::Unix(stream), port, (HOST_CID, None), greeting) {
        tracing::warn!(cid = device.cid(), port, %error, "A client is turned away");
    }
}
