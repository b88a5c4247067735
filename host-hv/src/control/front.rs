//! The half with the socket: who connects, and what may be opened for them.

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{ANSWER_MAX, Answer, LINE_MAX, Request, say};
use crate::fuse::share::{open_root, unopened};
use crate::sandbox::Opener;

/// Clients at a time; one more is hung up on.
const CLIENTS: usize = 32;

/// The other half, which answers one request at a time.
struct Desk(Mutex<BufReader<UnixStream>>);

/// Serves whoever connects, each on a thread of its own, until the process ends.
pub fn serve(listener: UnixListener, desk: UnixStream, opener: Opener) -> io::Result<()> {
    listener.set_nonblocking(false)?;
    let desk = Arc::new(Desk(Mutex::new(BufReader::new(desk))));
    let clients = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let (desk, mine) = (desk.clone(), clients.clone());
            if clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
                tracing::warn!(limit = CLIENTS, "Too many clients of the control socket");
                clients.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let serve = move || {
                if let Err(error) = client(stream, &desk, opener) {
                    tracing::debug!(%error, "A client of the control socket is lost");
                }
                mine.fetch_sub(1, Ordering::Relaxed);
            };
            if let Err(error) = thread::Builder::new().name("control client".into()).spawn(serve) {
                tracing::warn!(%error, "A client of the control socket is turned away");
                clients.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(())
}

fn client(stream: UnixStream, desk: &Desk, opener: Opener) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        if !whole {
            line.push(b'\n');
        }
        let request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                say(
                    &writer,
                    &Answer::Error { kind: "bad-request", message: format!("Not understood: {error}") },
                )?;
                if whole { continue } else { return Ok(()) }
            }
        };
        match request {
            Request::Watch => {
                // The stream is the desk's from here on.
                return desk.ask(&line, Some(&writer.into())).map(drop);
            }
            Request::Add { path, .. } => {
                let opened = open_root(&path)
                    .and_then(|root| opener.enclose(root).map_err(|error| unopened(&path, error)));
                match opened {
                    Ok(root) => writer.write_all(&desk.ask(&line, Some(&root))?)?,
                    Err(error) => say(&writer, &Answer::from(error))?,
                }
            }
            Request::Remove { .. } | Request::Set { .. } | Request::List => {
                writer.write_all(&desk.ask(&line, None)?)?;
            }
        }
        if !whole {
            // Cut, or longer than a line may be: what follows is no line's beginning.
            return Ok(());
        }
    }
}

impl Desk {
    /// Passes a request on, with a descriptor that goes with it, and returns the answer's line.
    fn ask(&self, line: &[u8], with: Option<&OwnedFd>) -> io::Result<Vec<u8>> {
        let mut desk = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptors: Vec<_> = with.into_iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        let pieces = [IoSlice::new(line)];
        let sent = sendmsg(desk.get_ref(), &pieces, &mut ancillary, SendFlags::NOSIGNAL)?;
        desk.get_ref().write_all(line.get(sent..).unwrap_or_default())?;
        let mut answer = Vec::new();
        if desk.by_ref().take(ANSWER_MAX).read_until(b'\n', &mut answer)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the device has ended"));
        }
        Ok(answer)
    }
}
