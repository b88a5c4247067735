//! A guest that the host knows and that uses all the host says to it on another guest.
//!
//! ```text
//! host                       posing guest                     victim
//!  | CLIENT_HELLO -------------->| the same --------------------->|
//!  |<----- its own SERVER_HELLO  |<--------------- SERVER_HELLO   |
//!  | CLIENT_AUTH, request ------>| the same --------------------->|
//!  |                             |<----------------------- FAILED |
//!  | TICKET, request ----------->| the same (a connection of its own) ->|
//! ```

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hospes_protocol::codec;
use hospes_protocol::error::WireError;
use hospes_protocol::frame::{self, FrameBuffer, FrameId};
use hospes_protocol::handshake::{Entropy, Guest, Ready, SessionId, machine_digest};
use hospes_protocol::keys::SecretKey;
use hospes_protocol::version::Capabilities;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// The posing guest. Its threads end with their connections.
pub(crate) struct Posing {
    directory: TempDir,
    mind: Arc<Mind>,
}

struct Mind {
    key: SecretKey,
    victim: PathBuf,
    session: Mutex<SessionId>,
    answers: Mutex<Vec<WireError>>,
}

impl Posing {
    pub(crate) fn before(victim: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir()?;
        let listener = UnixListener::bind(directory.path().join("socket"))?;
        let mind = Arc::new(Mind {
            key: SecretKey::from_bytes(&[9; 32]),
            victim: victim.to_owned(),
            session: Mutex::new(SessionId([9; 16])),
            answers: Mutex::default(),
        });
        let posing = Self { directory, mind: Arc::clone(&mind) };
        thread::spawn(move || {
            for host in listener.incoming().flatten() {
                let mind = Arc::clone(&mind);
                thread::spawn(move || {
                    if let Err(error) = mind.serve(host) {
                        eprintln!("The posing guest: {error:#}");
                    }
                });
            }
        });
        Ok(posing)
    }

    /// Where the host dials.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The name of the sessions that it opens from now on.
    pub(crate) fn name_its_session(&self, id: SessionId) {
        *self.mind.session.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }

    /// What the victim answered to what was passed on.
    pub(crate) fn answers(&self) -> Vec<WireError> {
        self.mind.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Mind {
    fn serve(&self, host: UnixStream) -> Result<()> {
        let mut host = Peer::new(host)?;
        let mut victim = Peer::new(UnixStream::connect(&self.victim)?)?;
        let (first, payload) = host.frame()?;
        victim.pass(first, &payload)?;
        match first {
            FrameId::CLIENT_HELLO => self.shake_hands(host, victim, &payload),
            _ => self.pass_on(host, victim),
        }
    }

    fn shake_hands(&self, mut host: Peer, mut victim: Peer, hello: &[u8]) -> Result<()> {
        let (FrameId::SERVER_HELLO, _) = victim.frame()? else { bail!("the victim did not shake hands") };
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).0;
        let entropy = Entropy { share: [9; 32], nonce: [9; 32], session };
        let mut out = Vec::new();
        let machine = machine_digest("posing");
        let ours = Guest::answer(hello, &self.key, machine, Capabilities(u64::MAX), &entropy, &mut out)?;
        host.stream.write_all(&out)?;
        let (id, auth) = host.frame()?;
        let (request, _) = host.peek()?;
        if request == FrameId::CONTROL {
            // The agent's session: it is kept, so that tickets are issued for it.
            ours.finish(&auth)?;
            let ready = Ready { release: "posing".into(), first_use: false };
            let mut out = Vec::new();
            frame::put(FrameId::READY, &ready, &mut out);
            host.stream.write_all(&out)?;
            host.stream.set_read_timeout(None)?;
            while host.frame().is_ok() {}
            return Ok(());
        }
        victim.pass(id, &auth)?;
        self.pass_on(host, victim)
    }

    /// The rest of what the host says, and the victim's answer to the host.
    fn pass_on(&self, mut host: Peer, mut victim: Peer) -> Result<()> {
        let (id, payload) = host.peek()?;
        victim.pass(id, &payload)?;
        let (id, payload) = victim.frame()?;
        if id == FrameId::FAILED {
            let error = codec::decode(&payload)?;
            self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(error);
        }
        host.pass(id, &payload)?;
        // Until the host has read it: a connection that is closed with unread bytes is reset.
        while host.frame().is_ok() {}
        Ok(())
    }
}

struct Peer {
    stream: UnixStream,
    buffer: FrameBuffer,
    ahead: Option<(FrameId, Vec<u8>)>,
}

impl Peer {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: FrameBuffer::new(), ahead: None })
    }

    fn frame(&mut self) -> Result<(FrameId, Vec<u8>)> {
        if let Some(frame) = self.ahead.take() {
            return Ok(frame);
        }
        loop {
            if let Some(frame) = self.buffer.take()? {
                return Ok((frame.id, frame.payload.to_vec()));
            }
            match self.stream.read(self.buffer.space())? {
                0 => bail!("it closed the connection"),
                n => self.buffer.filled(n),
            }
        }
    }

    /// The next frame, which is also the next one after this.
    fn peek(&mut self) -> Result<(FrameId, Vec<u8>)> {
        let frame = self.frame()?;
        self.ahead = Some(frame.clone());
        Ok(frame)
    }

    /// Sends a frame that somebody else made.
    fn pass(&mut self, id: FrameId, payload: &[u8]) -> Result<()> {
        let mut out = Vec::new();
        frame::put_raw(id, 0, payload, &mut out);
        self.stream.write_all(&out).context("it takes no more")
    }
}
