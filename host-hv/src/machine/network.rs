//! A guest's network device with the socket of the program that is its network, on the thread of its slot.

use std::io;
use std::os::unix::net;
use std::path::PathBuf;

use mio::event::Event;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};

use super::slot::{Make, Resident};
use crate::virtio::Device;
use crate::virtio::net::{Address, Link, Net};

/// What a guest is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Where passt, gvproxy or another such program listens.
    pub socket: PathBuf,
    /// The guest's address there.
    pub address: Address,
    /// The most bytes of a packet.
    pub mtu: u16,
}

/// What makes the device, and connects it. A machine that begins anew connects anew, as a cable that was pulled out.
#[must_use]
pub fn make(network: Network) -> Make {
    Box::new(move |registry| {
        let path = network.socket.display();
        let stream = UnixStream::connect(&network.socket).map_err(|error| {
            let words = format!(
                "nobody answers at {path}: {error}. Start its network first: passt --socket {path}, \
                 or gvproxy --listen-qemu unix://{path}"
            );
            io::Error::new(error.kind(), words)
        })?;
        Inhabitant::begin(stream, network.address, network.mtu, registry)
    })
}

/// As [`make`], of a stream that is connected.
#[must_use]
pub fn make_over(stream: net::UnixStream, address: Address, mtu: u16) -> Make {
    Box::new(move |registry| {
        stream.set_nonblocking(true)?;
        Inhabitant::begin(UnixStream::from_std(stream), address, mtu, registry)
    })
}

struct Inhabitant(Net);

impl Inhabitant {
    fn begin(
        mut stream: UnixStream,
        address: Address,
        mtu: u16,
        registry: &Registry,
    ) -> io::Result<Box<dyn Resident>> {
        registry.register(&mut stream, Token(0), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Box::new(Self(Net::new(Link::new(stream), address, mtu))))
    }
}

impl Resident for Inhabitant {
    fn device(&mut self) -> &mut dyn Device {
        &mut self.0
    }

    fn news(&mut self, news: &Event) {
        self.0.link_ready(news.is_readable(), news.is_writable());
    }
}
