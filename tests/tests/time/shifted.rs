//! A host whose clock has moved: a socket before the guest's, on which what the host says of the time is changed.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use anyhow::{Context, Result};
use hospes_protocol::codec;
use hospes_protocol::frame::{self, FrameId, Header};
use hospes_protocol::limits::HEADER_LEN;
use hospes_protocol::time::Stamp;
use tempfile::TempDir;

/// The socket. Its threads end with their connections.
pub(crate) struct Shifted {
    directory: TempDir,
    by: Arc<AtomicI64>,
}

impl Shifted {
    pub(crate) fn before(guest: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir()?;
        let listener = UnixListener::bind(directory.path().join("socket"))?;
        let shifted = Self { directory, by: Arc::default() };
        let (by, guest) = (Arc::clone(&shifted.by), guest.to_owned());
        thread::spawn(move || {
            for host in listener.incoming().flatten() {
                // Nobody there: the host's connection closes, as it would without us.
                if let Ok(guest) = UnixStream::connect(&guest) {
                    let by = Arc::clone(&by);
                    // A connection that breaks is one that ends.
                    let _ = join(&host, &guest, by);
                }
            }
        });
        Ok(shifted)
    }

    /// Where the host dials.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// By how much the host's clock is ahead of what it was, from now on.
    pub(crate) fn set(&self, by: i64) {
        self.by.store(by, Ordering::SeqCst);
    }
}

fn join(host: &UnixStream, guest: &UnixStream, by: Arc<AtomicI64>) -> Result<()> {
    let (mut from_guest, mut to_host) = (guest.try_clone()?, host.try_clone()?);
    let (mut from_host, mut to_guest) = (host.try_clone()?, guest.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_guest, &mut to_host);
        let _ = to_host.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let _ = forward(&mut from_host, &mut to_guest, &by);
        let _ = to_guest.shutdown(Shutdown::Both);
    });
    Ok(())
}

/// The line that names the port, and frames.
fn forward(host: &mut UnixStream, guest: &mut UnixStream, by: &AtomicI64) -> Result<()> {
    let mut byte = [0];
    while byte != *b"\n" {
        host.read_exact(&mut byte)?;
        guest.write_all(&byte)?;
    }
    loop {
        let mut header = [0; HEADER_LEN];
        host.read_exact(&mut header)?;
        let parsed = Header::parse(header)?;
        let mut payload = vec![0; usize::try_from(parsed.len)?];
        host.read_exact(&mut payload)?;
        let mut out = [&header[..], &payload].concat();
        if parsed.id == FrameId::TIME_STAMP {
            let stamp: Stamp = codec::decode(&payload)?;
            let moved = |ns: u64| {
                ns.checked_add_signed(by.load(Ordering::SeqCst)).context("The host's clock has an end")
            };
            let (received_ns, sent_ns) = (moved(stamp.received_ns)?, moved(stamp.sent_ns)?);
            out.clear();
            frame::put(FrameId::TIME_STAMP, &Stamp { received_ns, sent_ns, ..stamp }, &mut out);
        }
        guest.write_all(&out)?;
    }
}
