//! A way from the host to a guest that can be cut, and mended.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;
use tempfile::TempDir;

/// A socket before the guest's. Its threads end with their connections.
pub(crate) struct Link {
    directory: TempDir,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: bool,
    /// Both sides of each connection that was made since the last cut.
    open: Vec<UnixStream>,
}

impl Link {
    pub(crate) fn to(guest: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hospes-").tempdir()?;
        let listener = UnixListener::bind(directory.path().join("socket"))?;
        let link = Self { directory, state: Arc::default() };
        let (state, guest) = (Arc::clone(&link.state), guest.to_owned());
        thread::spawn(move || {
            for host in listener.incoming().flatten() {
                // Cut, or nobody there: the host's connection closes.
                let _ = join(host, &guest, &state);
            }
        });
        Ok(link)
    }

    /// Where the host dials.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Ends every connection, and lets none through any more.
    pub(crate) fn cut(&self) {
        let mut state = lock(&self.state);
        state.cut = true;
        for stream in state.open.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets them through again.
    pub(crate) fn mend(&self) {
        lock(&self.state).cut = false;
    }
}

fn join(host: UnixStream, guest: &Path, state: &Mutex<State>) -> Result<()> {
    let mut state = lock(state);
    if state.cut {
        return Ok(());
    }
    let guest = UnixStream::connect(guest)?;
    state.open.extend([host.try_clone()?, guest.try_clone()?]);
    for (mut from, mut to) in [(host.try_clone()?, guest.try_clone()?), (guest, host)] {
        thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
