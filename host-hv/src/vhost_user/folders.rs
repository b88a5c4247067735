//! Serves a file system device. Its requests are the device's own threads' work; this loop has the VMM alone.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use thiserror::Error;

use super::vmm::Vmm;
use crate::virtio::Device;
use crate::virtio::fs::Fs;

const LISTENER: Token = Token(0);
const VMM: Token = Token(1);
const STOP: Token = Token(2);
/// The first ring's kicks, should the device not wait for them itself.
const KICKS: usize = 3;

/// Why the server cannot start or go on.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum FolderServerError {
    #[error("Failed to wait for events")]
    Poll(#[source] io::Error),
}

/// Serves one guest's file system device until told to stop.
pub struct FolderServer {
    poll: Poll,
    path: PathBuf,
    device: Rc<RefCell<Fs>>,
    listener: net::UnixListener,
    vmm: Option<Vmm<Fs>>,
    stop: Option<net::UnixStream>,
    once: bool,
}

impl FolderServer {
    /// Waits for the VMM at `listener`, which is at `path`. With `once`, [`run`](Self::run) returns when it has gone.
    pub fn new(
        listener: net::UnixListener,
        path: &Path,
        device: Fs,
        once: bool,
    ) -> Result<Self, FolderServerError> {
        let poll = Poll::new().map_err(FolderServerError::Poll)?;
        watch(&poll, listener.as_raw_fd(), LISTENER)?;
        let device = Rc::new(RefCell::new(device));
        Ok(Self { poll, path: path.to_owned(), device, listener, vmm: None, stop: None, once })
    }

    /// Makes [`run`](Self::run) return when `stop` becomes readable.
    pub fn stop_on(&mut self, stop: net::UnixStream) -> Result<(), FolderServerError> {
        watch(&self.poll, stop.as_raw_fd(), STOP)?;
        self.stop = Some(stop);
        Ok(())
    }

    /// Serves.
    pub fn run(&mut self) -> Result<(), FolderServerError> {
        let mut events = Events::with_capacity(16);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(FolderServerError::Poll(error));
                }
                _ => {}
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(()),
                    LISTENER => self.accept(),
                    VMM => {
                        if self.vmm.as_mut().is_some_and(Vmm::serve) {
                            self.vmm = None;
                            if self.once {
                                return Ok(());
                            }
                            // The next one may wait already, and its knock was heard before.
                            self.accept();
                        }
                    }
                    Token(kick) => self.device.borrow_mut().kick(kick - KICKS),
                }
            }
        }
    }

    fn accept(&mut self) {
        // While one VMM is served the next waits in the listener's queue.
        if self.vmm.is_some() {
            return;
        }
        let Ok((stream, _)) = self.listener.accept() else { return };
        let kicks = Box::new(|ring| Token(KICKS + ring));
        let name = self.path.display().to_string();
        match Vmm::new(stream, self.device.clone(), self.poll.registry(), VMM, kicks, name) {
            Ok(vmm) => self.vmm = Some(vmm),
            Err(error) => tracing::error!(%error, "Failed to watch the VMM"),
        }
    }
}

impl Drop for FolderServer {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

fn watch(poll: &Poll, fd: RawFd, token: Token) -> Result<(), FolderServerError> {
    poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE).map_err(FolderServerError::Poll)
}
