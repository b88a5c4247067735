//! Guests that dial us to say that they are there: a hint to dial back, and never more.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hospes_protocol::frame::{FrameBuffer, FrameId};
use hospes_protocol::handshake::Announce;
use hospes_protocol::limits::ANNOUNCE_PORT;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::agent::ask::Announced;
use crate::agent::state::{Agent, now_ms};
use crate::endpoint::Endpoint;
use crate::printable;
use crate::sys::{readiness, vsock};

/// How long an announcement may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Announcements under way at once, per listener.
const AT_ONCE: usize = 8;

/// Between tries after accept(2) failed.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Listens on the vsock port for any guest. The port is below 1024: where we may not have it, guests behind `AF_VSOCK`
/// are found by dialling alone.
pub(crate) async fn vsock(agent: Rc<Agent>) {
    let listener = match vsock::listen(ANNOUNCE_PORT) {
        Ok(listener) => listener,
        Err(error) => {
            return agent
                .log(None, format_args!("no announcements over vsock port {ANNOUNCE_PORT}: {error}"));
        }
    };
    let Ok(listener) = readiness::register(listener) else { return };
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(mut ready) = listener.readable().await else { return };
        let accepted = vsock::accept(listener.get_ref());
        let (fd, cid) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready.clear_ready();
                continue;
            }
            // A peer that was gone at once, or no descriptor to spare: in a moment there may be one.
            Err(_) => {
                sleep(EXHAUSTED).await;
                continue;
            }
        };
        let Ok(endpoint) = format!("vsock:{cid}").parse::<Endpoint>() else { continue };
        let Ok(stream) = UnixStream::from_std(StdStream::from(fd)) else { continue };
        hear(&agent, &slots, stream, endpoint);
    }
}

/// Listens where a `unix:` endpoint's VMM brings what its guest dials.
pub(crate) async fn unix(agent: Rc<Agent>, endpoint: Endpoint) {
    let Endpoint::Unix(path) = &endpoint else { return };
    let mut name = path.clone().into_os_string();
    name.push(format!("_{ANNOUNCE_PORT}"));
    let path = PathBuf::from(name);
    // Another agent's is left alone.
    let Ok((listener, _name)) = hospes_listen::unix::listen(path) else { return };
    let Ok(listener) = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)) else {
        return;
    };
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => hear(&agent, &slots, stream, endpoint.clone()),
            Err(_) => sleep(EXHAUSTED).await,
        }
    }
}

fn hear(agent: &Rc<Agent>, slots: &Arc<Semaphore>, stream: UnixStream, endpoint: Endpoint) {
    // A guest that floods us loses its announcements, and nobody else's.
    let Ok(slot) = Arc::clone(slots).try_acquire_owned() else { return };
    let agent = Rc::clone(agent);
    tokio::task::spawn_local(async move {
        let _slot = slot;
        if let Ok(Some(announce)) = timeout(PATIENCE, read(stream)).await {
            agent.announced(Announced {
                endpoint,
                hostname: printable::line(&announce.hostname).into_owned(),
                fingerprint: announce.guest_key.fingerprint(),
                at: now_ms() / 1000,
            });
        }
    });
}

async fn read(mut stream: UnixStream) -> Option<Announce> {
    let mut input = FrameBuffer::new();
    loop {
        if let Some(frame) = input.take().ok()? {
            return if frame.id == FrameId::ANNOUNCE { frame.decode().ok() } else { None };
        }
        let n = stream.read(input.space()).await.ok()?;
        if n == 0 {
            return None;
        }
        input.filled(n);
    }
}
