//! The way to `hospes-toolsd`: connects while there is a desktop, and is handed connections.

use std::os::fd::OwnedFd;
use std::path::Path;

use guest_tools::handoff::{self, Handoff, HandoffError};
use hospes_clipboard::watch::Watch;
use tokio::net::UnixStream;
use tokio::time::{Duration, sleep};

/// A daemon's socket is there a moment before it listens.
const BETWEEN: Duration = Duration::from_millis(100);
const TRIES: u32 = 10;

/// A connection to the daemon.
#[derive(Debug)]
pub struct Daemon {
    stream: UnixStream,
}

impl Daemon {
    /// Connects, as soon as there is a daemon.
    pub async fn connect(socket: &Path) -> Self {
        let mut tries = 0;
        loop {
            // Before the attempt, so that a socket that appears behind it is not missed. Where the directory itself is
            // still to come, its own directory tells.
            let directory = socket.parent().unwrap_or(socket);
            let watch = Watch::new([directory, directory.parent().unwrap_or(directory)]);
            if let Ok(stream) = UnixStream::connect(socket).await {
                return Self { stream };
            }
            tries += 1;
            if tries < TRIES {
                sleep(BETWEEN).await;
                continue;
            }
            let names = [socket, directory].map(|path| path.file_name().and_then(|name| name.to_str()));
            let names: Vec<&str> = names.into_iter().flatten().collect();
            match watch {
                Ok(watch) if watch.appeared(&names).await.is_ok() => tries = 0,
                _ => std::future::pending().await,
            }
        }
    }

    /// Tells that the clipboard is another one than before.
    pub fn tell_anew(&self) {
        // Where there is no room, it is told already.
        let _ = self.stream.try_write(&[handoff::NEWS]);
    }

    /// The next connection that it hands over.
    ///
    /// # Errors
    /// [`HandoffError`]: the daemon left, or sent what is none.
    pub async fn next(&self) -> Result<(OwnedFd, Handoff), HandoffError> {
        handoff::receive(&self.stream).await
    }
}
