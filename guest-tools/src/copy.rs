//! Copy, in the guest: one thread reads or writes the tree, one carries the frames, and a copy whose connection is cut
//! waits for the host to come back.
//!
//! The work itself is [`hospes_tree`]'s. It blocks, as file systems do, so each copy has threads of its own while it
//! runs; the worker's one thread only starts it, hands it the connections that belong to it, and waits for its end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hospes_protocol::codec;
use hospes_protocol::copy::{CopyId, Position, Pull, Push, Resume};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::limits::COPY_PARKED_MS;
use hospes_tree::Exclude;
use hospes_tree::read::{Reader, Source};
use hospes_tree::transfer::{Cancel, Handle, Link, Receive, Relink, Send, TransferError, receive, send};
use hospes_tree::write::{Options, Target, Writer};
use tokio::sync::oneshot;
use tokio::time;

use crate::connection::Connection;
use crate::handoff::Handoff;
use crate::session::Worker;
use crate::sys::vsock;

/// Copies of one user at once.
const COPIES: usize = 64;

/// How long a copy may take to tell its host that the session ends.
const STOPPING: Duration = Duration::from_secs(2);

/// A worker's copies under way, parked ones too.
#[derive(Debug, Default)]
pub(crate) struct Copies(RefCell<HashMap<CopyId, Copying>>);

/// How a copy under way is reached.
#[derive(Debug, Clone)]
struct Copying {
    /// Where another connection of it goes.
    inbox: mpsc::Sender<(Link, u64)>,
    /// Ends the connection that it has.
    current: Arc<Mutex<Handle>>,
}

impl Copies {
    /// Whether another one may begin under this id.
    fn admit(&self, id: &CopyId) -> Result<(), WireError> {
        let copies = self.0.borrow();
        if copies.contains_key(id) {
            Err(WireError::new(ErrorKind::EXISTS, "A copy of this id is under way"))
        } else if copies.len() >= COPIES {
            Err(WireError::new(ErrorKind::LIMIT, format_args!("{COPIES} copies are under way already")))
        } else {
            Ok(())
        }
    }

    fn add(&self, id: CopyId, copying: Copying) {
        self.0.borrow_mut().insert(id, copying);
    }

    fn find(&self, id: &CopyId) -> Option<Copying> {
        self.0.borrow().get(id).cloned()
    }

    /// From here on nobody comes back to it: one that is parked ends at once.
    fn remove(&self, id: &CopyId) {
        self.0.borrow_mut().remove(id);
    }
}

/// Serves a [`Push`].
pub(crate) async fn push(worker: Rc<Worker>, connection: Connection, handoff: Handoff) {
    let push = match codec::decode::<Push>(&handoff.request).map_err(WireError::protocol) {
        Ok(push) => push,
        Err(error) => return connection.refuse(&error).await,
    };
    if let Err(error) = push.check() {
        return connection.refuse(&WireError::protocol(error)).await;
    }
    let target = Target::new(&resolve(&worker.account.home, &push.target), push.into);
    let options = Options { special_bits: push.special_bits, strict: push.strict, report_skipped: false };
    run(worker, connection, push.id, true, move |link, relink, cancel| {
        let writer = match Writer::new(target, options, Arc::default()) {
            Ok(writer) => Box::new(writer),
            Err(error) => return refuse(link, error),
        };
        receive(link, relink, writer, Receive::Report, cancel).map(drop)
    })
    .await;
}

/// Serves a [`Pull`].
pub(crate) async fn pull(worker: Rc<Worker>, connection: Connection, handoff: Handoff) {
    let pull = match codec::decode::<Pull>(&handoff.request).map_err(WireError::protocol) {
        Ok(pull) => pull,
        Err(error) => return connection.refuse(&error).await,
    };
    if let Err(error) = pull.check() {
        return connection.refuse(&WireError::protocol(error)).await;
    }
    let home = worker.account.home.clone();
    run(worker, connection, pull.id, false, move |link, relink, cancel| match reader(&home, &pull) {
        Ok(reader) => send(link, relink, Box::new(reader), Send::Goodbye, cancel).map(drop),
        Err(error) => refuse(link, error),
    })
    .await;
}

/// Serves a [`Resume`]: the connection goes to the copy that it belongs to.
pub(crate) async fn resume(worker: Rc<Worker>, connection: Connection, handoff: Handoff) {
    let resume = match codec::decode::<Resume>(&handoff.request).map_err(WireError::protocol) {
        Ok(resume) => resume,
        Err(error) => return connection.refuse(&error).await,
    };
    let Some(Copying { inbox, current }) = worker.copies.find(&resume.id) else {
        let error = WireError::new(ErrorKind::NOT_FOUND, "The guest no longer has the copy that was cut")
            .hint("Copy again: what is in place already is whole");
        return connection.refuse(&error).await;
    };
    // The copy may not have noticed that the old connection is lost.
    current.lock().unwrap_or_else(PoisonError::into_inner).close();
    match link(connection) {
        // A copy that ended this very moment drops it, which tells the host.
        Ok(link) => drop(inbox.send((link, resume.taken))),
        Err(error) => tracing::warn!("A copy's connection could not be taken up: {error}"),
    }
}

/// Runs a copy on a thread of its own, to its end.
async fn run(
    worker: Rc<Worker>,
    connection: Connection,
    id: CopyId,
    receiving: bool,
    copy: impl FnOnce(Link, &mut dyn Relink, &Cancel) -> Result<(), TransferError> + std::marker::Send + 'static,
) {
    if let Err(error) = worker.copies.admit(&id) {
        return connection.refuse(&error).await;
    }
    let link = match link(connection) {
        Ok(link) => link,
        Err(error) => return tracing::warn!("A copy could not begin: {error}"),
    };
    let (inbox, connections) = mpsc::channel();
    let current = Arc::new(Mutex::new(link.handle()));
    let (over, mut ended) = oneshot::channel();
    let cancel = Cancel::default();
    let mut parked = Parked { connections, receiving, current: Arc::clone(&current) };
    let theirs = cancel.clone();
    let thread = std::thread::Builder::new().name("copy".into()).stack_size(512 * 1024).spawn(move || {
        let _ = over.send(copy(link, &mut parked, &theirs));
    });
    if let Err(error) = thread {
        return tracing::error!("A copy could not begin: no thread: {error}");
    }
    worker.copies.add(id, Copying { inbox, current: Arc::clone(&current) });
    let outcome = tokio::select! {
        outcome = &mut ended => Some(outcome),
        () = worker.stopping() => None,
    };
    worker.copies.remove(&id);
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => {
            cancel.cancel();
            let stopped = time::timeout(STOPPING, &mut ended).await;
            match stopped {
                Ok(outcome) => outcome,
                Err(_) => {
                    current.lock().unwrap_or_else(PoisonError::into_inner).close();
                    ended.await
                }
            }
        }
    };
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("A copy ended before its end: {error}"),
        Err(_) => tracing::error!("A copy's thread failed"),
    }
}

/// A connection as the copy's threads use it: a blocking socket.
fn link(connection: Connection) -> std::io::Result<Link> {
    let (socket, rest, unsent) = connection.into_parts();
    rustix::io::ioctl_fionbio(&socket, false)?;
    vsock::widen(&socket);
    let mut link = Link::new(socket, rest);
    link.say(&unsent)?;
    Ok(link)
}

fn refuse(link: Link, error: WireError) -> Result<(), TransferError> {
    link.fail(&error);
    Err(TransferError::Ours(error))
}

fn reader(home: &Path, pull: &Pull) -> Result<Reader, WireError> {
    let exclude = Exclude::new(&pull.exclude).map_err(WireError::protocol)?;
    let sources = pull.sources.iter().map(|path| Source::new(&resolve(home, path)));
    Reader::new(sources.collect::<Result<_, _>>()?, exclude, pull.count, Arc::default())
}

/// A path of a request in full: a relative one and `~` start at the user's home. A host's shell leaves a tilde behind
/// `VM:` alone, so this is where it is understood.
fn resolve(home: &Path, path: &[u8]) -> Vec<u8> {
    let path = match path {
        b"~" => b".",
        [b'~', b'/', rest @ ..] => rest,
        path => path,
    };
    let absolute = home.join(Path::new(std::ffi::OsStr::from_bytes(path)));
    let mut bytes = absolute.into_os_string().into_vec();
    // Joining nothing, as in `~/`, leaves the home itself.
    if path.is_empty() && !bytes.ends_with(b"/") {
        bytes.push(b'/');
    }
    bytes
}

/// A copy without a connection.
struct Parked {
    connections: mpsc::Receiver<(Link, u64)>,
    receiving: bool,
    current: Arc<Mutex<Handle>>,
}

impl Relink for Parked {
    fn relink(&mut self, taken: u64) -> Option<(Link, u64)> {
        let until = Instant::now() + Duration::from_millis(COPY_PARKED_MS);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let (mut link, theirs) = self.connections.recv_timeout(left).ok()?;
            let position = Position { taken: if self.receiving { taken } else { theirs } };
            let mut out = Vec::new();
            frame::put(FrameId::COPY_POSITION, &position, &mut out);
            if link.say(&out).is_ok() {
                *self.current.lock().unwrap_or_else(PoisonError::into_inner) = link.handle();
                return Some((link, theirs));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_home() {
        let at = |path: &[u8]| String::from_utf8(resolve(Path::new("/home/ada"), path)).unwrap();
        for (path, expected) in [
            ("a/b", "/home/ada/a/b"),
            ("a/", "/home/ada/a/"),
            ("/etc", "/etc"),
            ("~", "/home/ada/."),
            ("~/a", "/home/ada/a"),
            ("~/", "/home/ada/"),
            ("~eve", "/home/ada/~eve"),
            (".", "/home/ada/."),
        ] {
            assert_eq!(at(path.as_bytes()), expected, "{path}");
        }
    }
}
