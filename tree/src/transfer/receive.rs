//! The receiving side: frames to a consumer's thread, and credit for those it has taken.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use hospes_protocol::copy::{ARCHIVE, Problem};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId, Header};
use hospes_protocol::stream::Receiver;

use super::{Cancel, Link, Relink, TransferError, Trouble, cancelled};
use crate::fault::Summary;
use crate::write::Consume;

/// Frames between the connection's thread and the consumer's. The credit window bounds their bytes, this their number.
const WAITING: usize = 4;

/// How a received copy ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receive {
    /// The sender wants a report (the host, in a push), and says goodbye.
    Report,
    /// The sender wants a goodbye (the guest, in a pull).
    Goodbye,
}

/// Receives a copy into `consumer`. Gives the consumer's summary.
///
/// # Errors
/// [`TransferError`].
pub fn receive(
    link: Link,
    relink: &mut dyn Relink,
    consumer: Box<dyn Consume>,
    ending: Receive,
    cancel: &Cancel,
) -> Result<Summary, TransferError> {
    let credit = Arc::new(Mutex::new(Credit {
        stream: Receiver::exact(ARCHIVE),
        link: None,
        stale: 0,
        waiting: 0,
        failed: None,
    }));
    let (full, frames) = mpsc::sync_channel(WAITING);
    let (back, used) = mpsc::channel();
    thread::scope(|scope| {
        let writing = thread::Builder::new().name("copy-write".into()).stack_size(512 * 1024);
        let theirs = Arc::clone(&credit);
        let writing = writing
            .spawn_scoped(scope, move || consume(consumer, &frames, &back, &theirs))
            .map_err(|error| TransferError::Ours(cannot_start(&error)))?;
        let mut receiving = Receiving {
            link: Some(link),
            credit,
            full: Some(full),
            used,
            writing: Some(writing),
            taken: 0,
            summary: None,
            cancel,
        };
        receiving.renew();
        receiving.run(relink, ending)
    })
}

fn cannot_start(error: &std::io::Error) -> WireError {
    WireError::new(ErrorKind::OS, format_args!("Cannot start a thread: {error}"))
}

/// What both threads know of the stream.
struct Credit {
    stream: Receiver,
    /// The connection, to grant over.
    link: Option<Arc<std::fs::File>>,
    /// Bytes that came over an earlier connection and are granted on none.
    stale: usize,
    /// Bytes handed to the consumer and not yet taken.
    waiting: usize,
    /// What the consumer failed with. The other side was told.
    failed: Option<WireError>,
}

impl Credit {
    fn taken(&mut self, len: usize) {
        let stale = len.min(self.stale);
        self.stale -= stale;
        self.waiting -= len;
        let mut out = Vec::new();
        self.stream.taken(len - stale, &mut out);
        if let Some(link) = self.link.as_ref().filter(|_| !out.is_empty()) {
            // A lost connection is the reading thread's to notice.
            let _ = std::io::Write::write_all(&mut &**link, &out);
        }
    }
}

fn lock(credit: &Mutex<Credit>) -> std::sync::MutexGuard<'_, Credit> {
    credit.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The consumer's thread.
fn consume(
    mut consumer: Box<dyn Consume>,
    frames: &mpsc::Receiver<(Vec<u8>, usize)>,
    back: &mpsc::Sender<Vec<u8>>,
    credit: &Mutex<Credit>,
) -> Result<Summary, WireError> {
    while let Ok((frame, len)) = frames.recv() {
        if let Err(error) = consumer.frame(&frame[..len]) {
            // What it has under way goes first: nobody who hears of the failure finds any of it.
            drop(consumer);
            refuse(&error, frames, credit);
            return Err(error);
        }
        let _ = back.send(frame);
        lock(credit).taken(len);
    }
    consumer.finish()
}

/// Tells the other side, and drops what it sends until it has heard.
fn refuse(error: &WireError, frames: &mpsc::Receiver<(Vec<u8>, usize)>, credit: &Mutex<Credit>) {
    let link = {
        let mut credit = lock(credit);
        credit.failed = Some(error.clone());
        credit.link.clone()
    };
    let mut out = Vec::new();
    frame::put(FrameId::FAILED, error, &mut out);
    if let Some(link) = &link {
        let _ = std::io::Write::write_all(&mut &**link, &out);
    }
    loop {
        match frames.recv_timeout(super::GOODBYE) {
            Ok(_) => (),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if let Some(link) = &link {
                    let _ = rustix::net::shutdown(link, rustix::net::Shutdown::Both);
                }
            }
        }
    }
}

struct Receiving<'s, 'c> {
    link: Option<Link>,
    credit: Arc<Mutex<Credit>>,
    full: Option<mpsc::SyncSender<(Vec<u8>, usize)>>,
    used: mpsc::Receiver<Vec<u8>>,
    writing: Option<thread::ScopedJoinHandle<'s, Result<Summary, WireError>>>,
    /// Archive bytes taken over: they reach the consumer whatever becomes of the connection.
    taken: u64,
    summary: Option<Summary>,
    cancel: &'c Cancel,
}

impl Receiving<'_, '_> {
    fn run(&mut self, relink: &mut dyn Relink, ending: Receive) -> Result<Summary, TransferError> {
        loop {
            match self.on_this_link(ending) {
                Ok(summary) => return Ok(summary),
                Err(Trouble::Fatal(error)) => {
                    let error = self.failure().unwrap_or(error);
                    return Err(self.give_up(error));
                }
                Err(Trouble::Lost) => {
                    // The other side goes when it hears that our consumer failed.
                    if let Some(error) = self.failure() {
                        return Err(self.give_up(error));
                    }
                    if self.summary.is_some() && ending == Receive::Goodbye {
                        return Ok(self.summary.take().unwrap_or_default());
                    }
                    self.link = None;
                    lock(&self.credit).link = None;
                    if self.cancel.is_cancelled() {
                        return Err(self.give_up(cancelled()));
                    }
                    let Some((link, _)) = relink.relink(self.taken) else {
                        return Err(self.give_up(TransferError::Cut { bytes: self.taken }));
                    };
                    self.link = Some(link);
                    self.renew();
                }
            }
        }
    }

    /// The stream begins anew, on the connection that there is now.
    fn renew(&mut self) {
        let mut credit = lock(&self.credit);
        credit.stream = Receiver::exact(ARCHIVE);
        credit.stale = credit.waiting;
        credit.link = self.link.as_ref().map(|link| Arc::clone(&link.stream));
    }

    /// The consumer's error, where it failed.
    fn failure(&self) -> Option<TransferError> {
        lock(&self.credit).failed.clone().map(TransferError::Ours)
    }

    /// Ends the consumer too: it drops what it has under way.
    fn give_up(&mut self, error: TransferError) -> TransferError {
        self.full = None;
        if let Some(writing) = self.writing.take() {
            let _ = writing.join();
        }
        let told = lock(&self.credit).failed.is_some();
        if let Some(link) = self.link.take().filter(|_| error.is_news() && !told) {
            link.fail(&error.to_wire());
        }
        error
    }

    fn on_this_link(&mut self, ending: Receive) -> Result<Summary, Trouble> {
        while !self.receive_one()? {}
        let summary = self.finish()?;
        let mut out = Vec::new();
        if ending == Receive::Goodbye {
            frame::put_raw(FrameId::BYE, 0, &[], &mut out);
            // The copy is done, whether or not the goodbye arrives.
            let _ = self.say(&out);
            return Ok(summary);
        }
        for Problem { path, error } in summary.problems.named() {
            frame::put(
                FrameId::COPY_PROBLEM,
                &Problem { path: path.clone(), error: error.clone() },
                &mut out,
            );
        }
        frame::put(FrameId::COPY_DONE, &summary.done, &mut out);
        self.say(&out)?;
        let mut payload = Vec::new();
        let Some(link) = &mut self.link else { return Err(Trouble::Lost) };
        let header = link.hear(&mut payload)?;
        match header.id {
            FrameId::BYE => Ok(summary),
            id => Err(TransferError::Unexpected { id }.into()),
        }
    }

    /// Receives one frame; true at the archive's end.
    fn receive_one(&mut self) -> Result<bool, Trouble> {
        if self.cancel.is_cancelled() {
            return Err(cancelled().into());
        }
        let Some(link) = &mut self.link else { return Err(Trouble::Lost) };
        let mut payload = self.used.try_recv().unwrap_or_default();
        let Header { id, channel, len } = link.hear(&mut payload)?;
        let len = len as usize;
        let frame = frame::Frame { id, channel, payload: &payload[..len] };
        match id {
            FrameId::DATA if channel == ARCHIVE && self.full.is_some() => {
                {
                    let mut credit = lock(&self.credit);
                    credit.stream.data(len)?;
                    credit.waiting += len;
                }
                if let Some(full) = &self.full
                    && full.send((payload, len)).is_err()
                {
                    return Err(self.failure().unwrap_or(TransferError::Thread).into());
                }
                self.taken += len as u64;
                Ok(false)
            }
            FrameId::END if channel == ARCHIVE => {
                lock(&self.credit).stream.end(frame.decode()?)?;
                Ok(true)
            }
            FrameId::FAILED => Err(TransferError::Peer(frame.decode()?).into()),
            FrameId::UNKNOWN => Ok(false),
            id => Err(TransferError::Unexpected { id }.into()),
        }
    }

    /// The consumer takes what waits, and ends.
    fn finish(&mut self) -> Result<Summary, Trouble> {
        self.full = None;
        if let Some(writing) = self.writing.take() {
            match writing.join() {
                Ok(Ok(summary)) => self.summary = Some(summary),
                Ok(Err(error)) => return Err(TransferError::Ours(error).into()),
                Err(_) => return Err(TransferError::Thread.into()),
            }
        }
        self.summary.clone().ok_or(Trouble::Fatal(TransferError::Thread))
    }

    fn say(&mut self, out: &[u8]) -> Result<(), Trouble> {
        let Some(link) = &mut self.link else { return Err(Trouble::Lost) };
        link.say(out).map_err(Trouble::from)
    }
}
