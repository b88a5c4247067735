//! The sending side: frames from a producer's thread, kept until the receiver has taken them.

use std::collections::VecDeque;
use std::thread;

use hospes_protocol::copy::{ARCHIVE, Done, Problem};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId, Header};
use hospes_protocol::limits::COPY_PROBLEMS;
use hospes_protocol::stream::Sender;

use super::{Cancel, Link, Relink, TransferError, Trouble, cancelled};
use crate::fault::{Problems, Summary};
use crate::frames::{Frame, FrameQueue, frames};
use crate::read::Produce;

/// How a sent copy ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Send {
    /// The receiver reports what it did (the guest, in a push), and is then told goodbye.
    Report,
    /// The receiver says goodbye (the host, in a pull).
    Goodbye,
}

/// Sends what `producer` makes. Gives the producer's own summary, and the receiver's where it reports.
///
/// # Errors
/// [`TransferError`].
pub fn send(
    link: Link,
    relink: &mut dyn Relink,
    producer: Box<dyn Produce>,
    ending: Send,
    cancel: &Cancel,
) -> Result<(Summary, Option<Summary>), TransferError> {
    let (mut frames, queue) = frames();
    thread::scope(|scope| {
        let reading = thread::Builder::new().name("copy-read".into()).stack_size(512 * 1024);
        let reading = reading.spawn_scoped(scope, move || producer.run(&mut frames)).map_err(|error| {
            TransferError::Ours(WireError::new(ErrorKind::OS, format_args!("Cannot start a thread: {error}")))
        })?;
        let mut sending = Sending {
            link: Some(link),
            stream: Sender::new(ARCHIVE),
            queue,
            kept: VecDeque::new(),
            resend: 0,
            acknowledged: 0,
            granted_from: 0,
            granted: 0,
            reported: Summary::default(),
            payload: Vec::new(),
            cancel,
        };
        let outcome = sending.run(relink, ending);
        // The queue goes first: the reading thread may be waiting to put a frame into it.
        drop(sending.queue);
        let read = reading.join().map_err(|_| TransferError::Thread)?;
        let reported = outcome?;
        // Stopped without an error of ours cannot be: the queue was there until its end.
        Ok((read.map_err(|_| cancelled())?, reported))
    })
}

struct Sending<'a> {
    link: Option<Link>,
    stream: Sender,
    queue: FrameQueue,
    /// Sent and not yet taken, oldest first.
    kept: VecDeque<Frame>,
    /// How many of the kept frames, from the front, have been sent on this connection.
    resend: usize,
    /// The archive byte at which the kept frames begin.
    acknowledged: u64,
    /// The archive byte at which this connection began, and how many it has granted again since.
    granted_from: u64,
    granted: u64,
    reported: Summary,
    payload: Vec<u8>,
    cancel: &'a Cancel,
}

impl Sending<'_> {
    fn run(&mut self, relink: &mut dyn Relink, ending: Send) -> Result<Option<Summary>, TransferError> {
        loop {
            let trouble = match self.on_this_link(ending) {
                Ok(reported) => return Ok(reported),
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Fatal(error) => {
                    if let Some(link) = self.link.take().filter(|_| error.is_news()) {
                        link.fail(&error.to_wire());
                    }
                    return Err(error);
                }
                Trouble::Lost => self.go_on(relink)?,
            }
        }
    }

    /// Takes the copy up on another connection.
    fn go_on(&mut self, relink: &mut dyn Relink) -> Result<(), TransferError> {
        self.link = None;
        let sent = self.acknowledged + self.kept.iter().map(|frame| frame.len() as u64).sum::<u64>();
        if self.cancel.is_cancelled() {
            return Err(cancelled());
        }
        let Some((link, taken)) = relink.relink(0) else { return Err(TransferError::Cut { bytes: sent }) };
        self.link = Some(link);
        let kept = self.acknowledged;
        self.acknowledge(taken);
        if taken != self.acknowledged {
            return Err(TransferError::Position { taken, kept, sent });
        }
        self.stream = Sender::new(ARCHIVE);
        self.resend = 0;
        self.granted_from = taken;
        self.granted = 0;
        self.reported = Summary::default();
        Ok(())
    }

    /// Forgets the frames that end at or before this archive byte.
    fn acknowledge(&mut self, taken: u64) {
        while let Some(frame) = self.kept.front() {
            let end = self.acknowledged + frame.len() as u64;
            if end > taken {
                break;
            }
            self.acknowledged = end;
            self.resend = self.resend.saturating_sub(1);
            if let Some(frame) = self.kept.pop_front() {
                let _ = self.queue.used.send(frame);
            }
        }
    }

    fn on_this_link(&mut self, ending: Send) -> Result<Option<Summary>, Trouble> {
        while self.send_one()? {}
        let mut out = Vec::new();
        self.stream.end(&mut out);
        self.say(&out)?;
        loop {
            match self.hear()? {
                Some(Heard::Done(done)) if ending == Send::Report => {
                    let mut reported = std::mem::take(&mut self.reported);
                    reported.problems.recount(done.problems);
                    reported.done = done;
                    let mut out = Vec::new();
                    frame::put_raw(FrameId::BYE, 0, &[], &mut out);
                    let _ = self.say(&out);
                    return Ok(Some(reported));
                }
                Some(Heard::Bye) if ending == Send::Goodbye => return Ok(None),
                Some(Heard::Done(_)) => {
                    return Err(TransferError::Unexpected { id: FrameId::COPY_DONE }.into());
                }
                Some(Heard::Bye) => return Err(TransferError::Unexpected { id: FrameId::BYE }.into()),
                None => (),
            }
        }
    }

    /// Sends the next frame, an old one first; false where there is none.
    fn send_one(&mut self) -> Result<bool, Trouble> {
        if self.resend == self.kept.len() {
            let Ok(frame) = self.queue.full.recv() else { return Ok(false) };
            self.kept.push_back(frame);
        }
        if self.cancel.is_cancelled() {
            return Err(cancelled().into());
        }
        let len = self.kept[self.resend].len();
        while self.stream.room() < len {
            match self.hear()? {
                None => (),
                Some(Heard::Done(_)) => {
                    return Err(TransferError::Unexpected { id: FrameId::COPY_DONE }.into());
                }
                // The receiver has what it wanted and goes: not before the end.
                Some(Heard::Bye) => return Err(TransferError::Unexpected { id: FrameId::BYE }.into()),
            }
        }
        let header = self.stream.data(len).to_bytes();
        let Some(link) = &mut self.link else { return Err(Trouble::Lost) };
        let sent = link.say(self.kept[self.resend].with_header(header));
        self.resend += 1;
        match sent {
            Ok(()) => Ok(true),
            // The receiver may have said why before it closed.
            Err(_) => loop {
                self.hear()?;
            },
        }
    }

    fn say(&mut self, out: &[u8]) -> Result<(), Trouble> {
        let Some(link) = &mut self.link else { return Err(Trouble::Lost) };
        link.say(out).map_err(Trouble::from)
    }

    /// Hears one frame.
    fn hear(&mut self) -> Result<Option<Heard>, Trouble> {
        let Some(link) = &mut self.link else { return Err(Trouble::Lost) };
        let Header { id, channel, len } = link.hear(&mut self.payload)?;
        let frame = frame::Frame { id, channel, payload: &self.payload[..len as usize] };
        match id {
            FrameId::CREDIT if channel == ARCHIVE => {
                let bytes: u32 = frame.decode()?;
                self.stream.granted(bytes)?;
                self.granted += u64::from(bytes);
                if self.granted > self.stream.total() {
                    let error = hospes_protocol::stream::StreamError::Grant { channel };
                    return Err(TransferError::from(error).into());
                }
                self.acknowledge(self.granted_from + self.granted);
            }
            FrameId::COPY_PROBLEM => {
                let Problem { path, error } = frame.decode()?;
                if self.reported.problems.count() < COPY_PROBLEMS as u64 {
                    self.reported.problems.add(&path, error);
                }
            }
            FrameId::COPY_DONE => return Ok(Some(Heard::Done(frame.decode()?))),
            FrameId::BYE => return Ok(Some(Heard::Bye)),
            FrameId::FAILED => return Err(TransferError::Peer(frame.decode()?).into()),
            FrameId::UNKNOWN => (),
            id => return Err(TransferError::Unexpected { id }.into()),
        }
        Ok(None)
    }
}

enum Heard {
    Done(Done),
    Bye,
}

impl Problems {
    /// The other side's count, which holds those that it did not name.
    fn recount(&mut self, count: u64) {
        self.count = self.count.max(count);
    }
}
