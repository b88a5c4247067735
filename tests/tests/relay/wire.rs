//! A wire between a host and a guest that somebody else holds: it can be led elsewhere, and it remembers.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hospes_protocol::frame::{FrameBuffer, FrameId};
use hospes_protocol::handshake::{ServerHello, SessionId};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A socket whose connections lead to another one. Its threads end with their connections.
pub(crate) struct Wire {
    directory: TempDir,
    end: Arc<Mutex<PathBuf>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// One connection's bytes.
#[derive(Default)]
struct Heard {
    host: Vec<u8>,
    guest: Vec<u8>,
}

impl Wire {
    pub(crate) fn to(end: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir()?;
        let listener = UnixListener::bind(directory.path().join("socket"))?;
        let wire = Self { directory, end: Arc::new(Mutex::new(end.to_owned())), heard: Arc::default() };
        let (end, heard) = (Arc::clone(&wire.end), Arc::clone(&wire.heard));
        thread::spawn(move || {
            for host in listener.incoming().flatten() {
                let end = lock(&end).clone();
                // Nobody there: the host's connection closes, as it would without us.
                if let Ok(guest) = UnixStream::connect(end) {
                    // A connection that breaks is one that ends.
                    let _ = join(&host, &guest, &heard);
                }
            }
        });
        Ok(wire)
    }

    /// Where the host dials.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Leads the connections that come from now on elsewhere.
    pub(crate) fn lead_to(&self, end: &Path) {
        end.clone_into(&mut lock(&self.end));
    }

    /// What the host said on each connection that carried anything.
    pub(crate) fn said(&self) -> Vec<Vec<u8>> {
        lock(&self.heard).iter().map(|heard| heard.host.clone()).filter(|said| !said.is_empty()).collect()
    }

    /// The name of the first session that a guest opened here.
    pub(crate) fn overheard_session(&self) -> Result<SessionId> {
        let heard = lock(&self.heard);
        let mut hellos = heard.iter().filter_map(|heard| first_hello(&heard.guest));
        hellos.next().map(|hello| hello.body.session).context("no guest has answered here")
    }
}

/// Says to whoever serves `socket` what was said before, and gives the answer.
pub(crate) fn say_again(socket: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(answer),
    }
}

fn join(host: &UnixStream, guest: &UnixStream, heard: &Arc<Mutex<Vec<Heard>>>) -> std::io::Result<()> {
    let place = {
        let mut heard = lock(heard);
        heard.push(Heard::default());
        heard.len() - 1
    };
    let said: fn(&mut Heard) -> &mut Vec<u8> = |heard| &mut heard.host;
    let answered: fn(&mut Heard) -> &mut Vec<u8> = |heard| &mut heard.guest;
    for (from, to, kept) in [(host, guest, said), (guest, host, answered)] {
        let (mut from, mut to, heard) = (from.try_clone()?, to.try_clone()?, Arc::clone(heard));
        thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                kept(&mut lock(&heard)[place]).extend_from_slice(&bytes[..n]);
                if to.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
            // Either may be gone already.
            let _ = to.shutdown(Shutdown::Write);
            let _ = from.shutdown(Shutdown::Read);
        });
    }
    Ok(())
}

fn first_hello(bytes: &[u8]) -> Option<ServerHello> {
    let mut buffer = FrameBuffer::new();
    let n = bytes.len().min(buffer.space().len());
    buffer.space()[..n].copy_from_slice(&bytes[..n]);
    buffer.filled(n);
    let frame = buffer.take().ok()??;
    (frame.id == FrameId::SERVER_HELLO).then(|| frame.decode().ok())?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
