//! Today's state machines as the two ends of a recorded conversation.
//!
//! An end is given the peer's frames, and is shown its own: what it does of its own accord (a command's output, a
//! person's signal) it takes from the recording; what follows by rule (a proof, credit) it must come up with itself.
//! Either way its bytes must be the recorded ones.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Context, Result, bail, ensure};
use hospes_protocol::control::{self, Reply, Request};
use hospes_protocol::copy::archive::Decoder;
use hospes_protocol::copy::{self, ARCHIVE};
use hospes_protocol::frame::{self, Frame, FrameId, Header};
use hospes_protocol::handshake::{self, ClientHello, Ready, ServerHello};
use hospes_protocol::limits::HEADER_LEN;
use hospes_protocol::stream::{Receiver, Sender};
use hospes_protocol::ticket::{Issuer, Opened, Ticket, Window};
use hospes_protocol::version::Version;
use hospes_protocol::{clipboard, exec, file, forward};

use super::conversation::{Record, Side, split};
use super::recode::recode;
use super::{guest_entropy, guest_key, host_entropy, host_key, machine, ticket_session};

/// Replays `records` with today's machine as `role`; its bytes must be the recorded ones.
pub(crate) fn replay(records: &[Record], role: Side) -> Result<()> {
    let mut end = End::new(role);
    let mut said: Vec<u8> = Vec::new();
    for (at, record) in records.iter().enumerate() {
        let context = || format!("record {at}, {:?} says {}", record.from, record.frame().id);
        if record.from != role {
            end.receive(record.frame(), &mut said).with_context(context)?;
            continue;
        }
        if said.is_empty() {
            let later: Vec<Frame<'_>> =
                records[at..].iter().filter(|r| r.from == role).map(Record::frame).collect();
            end.act(&later, &mut said).with_context(context)?;
        }
        ensure!(said.starts_with(&record.wire), "{}: today's bytes differ: {said:02x?}", context());
        said.drain(..record.wire.len());
    }
    ensure!(said.is_empty(), "today's {role:?} says more than the recording: {said:02x?}");
    end.closed()
}

/// Plays a script of frames through both of today's ends and records all that is said.
pub(crate) fn record(script: Vec<Record>) -> Result<Vec<Record>> {
    let (mut host, mut guest) = (End::new(Side::Host), End::new(Side::Guest));
    let mut records = Vec::new();
    for planned in script {
        let end = if planned.from == Side::Host { &mut host } else { &mut guest };
        let mut said = Vec::new();
        end.act(&[planned.frame()], &mut said).with_context(|| format!("{:?}", planned.frame().id))?;
        let mut under_way: VecDeque<Record> = split(planned.from, &said).into();
        while let Some(record) = under_way.pop_front() {
            let end = if record.from == Side::Host { &mut guest } else { &mut host };
            let mut answer = Vec::new();
            end.receive(record.frame(), &mut answer).with_context(|| format!("{:?}", record.frame().id))?;
            under_way.extend(split(record.from.other(), &answer));
            records.push(record);
        }
    }
    host.closed()?;
    guest.closed()?;
    Ok(records)
}

/// One end of a connection, from its first frame to its last.
struct End {
    side: Side,
    host_handshake: Option<handshake::Host<'static>>,
    guest_handshake: Option<handshake::Guest>,
    client_hello: Vec<u8>,
    opened: Option<Opened>,
    /// The first frame, or the proof, is done: operations may come.
    proved: bool,
    operation: Operation,
}

enum Operation {
    None,
    ExecHost(exec::Host),
    ExecGuest(exec::Guest),
    Forward(forward::End),
    /// A forward or a clipboard that the guest has not opened yet, and what has come for it.
    Opening(Vec<Record>),
    Clipboard(clipboard::Channel),
    Source(clipboard::Source),
    Sink(clipboard::Sink),
    File {
        sender: Sender,
        receiver: Receiver,
        replied: bool,
    },
    /// A push has a sender at the host and a receiver at the guest, a pull the other way round.
    Copy {
        sender: Option<Sender>,
        receiver: Option<(Receiver, Decoder)>,
        /// The receiver's last word, where it has one.
        done: bool,
    },
    /// Requests by number that are not answered yet.
    Control(BTreeSet<u64>),
    Listen,
    Time,
}

impl End {
    fn new(side: Side) -> Self {
        Self {
            side,
            host_handshake: None,
            guest_handshake: None,
            client_hello: Vec::new(),
            opened: None,
            proved: false,
            operation: Operation::None,
        }
    }

    /// Says `frames[0]`; the rest is what this end says later.
    fn act(&mut self, frames: &[Frame<'_>], out: &mut Vec<u8>) -> Result<()> {
        let frame = frames[0];
        match frame.id {
            FrameId::CLIENT_HELLO
            | FrameId::SERVER_HELLO
            | FrameId::READY
            | FrameId::TICKET
            | FrameId::OPENED => {
                return self.open(frame, out);
            }
            FrameId::DATA => return self.say_data(frame, out),
            FrameId::END => return self.say_end(frames, out),
            FrameId::UNWANTED => return self.say_unwanted(frame, out),
            FrameId::FORWARD_OPEN | FrameId::CLIPBOARD_READY => {
                let open = if frame.id == FrameId::FORWARD_OPEN {
                    Operation::Forward(forward::End::guest(&frame.decode()?, out))
                } else {
                    Operation::Clipboard(clipboard::Channel::guest(&frame.decode()?, out))
                };
                let before = std::mem::replace(&mut self.operation, open);
                let Operation::Opening(waiting) = before else { bail!("nobody asked for a connection") };
                return waiting.iter().try_for_each(|record| self.operate(record.frame(), out));
            }
            _ => {}
        }
        if self.side == Side::Host && self.begin(frame)? {
            return say_again(frame, out);
        }
        match (&mut self.operation, frame.id) {
            (Operation::ExecHost(host), FrameId::EXEC_SIGNAL) => {
                let exec::Signal(number) = frame.decode()?;
                host.signal(number, out);
            }
            (Operation::ExecHost(host), FrameId::EXEC_RESIZE) => host.resize(frame.decode()?, out),
            (Operation::ExecGuest(guest), FrameId::EXEC_STARTED) => guest.started(&frame.decode()?, out),
            (Operation::ExecGuest(guest), FrameId::EXEC_EXITED) => guest.exited(&frame.decode()?, out),
            (Operation::ExecGuest(guest), FrameId::FAILED) => guest.failed(&frame.decode()?, out),
            (Operation::Forward(end), FrameId::FAILED) => end.failed(&frame.decode()?, out),
            (Operation::Control(open), FrameId::REQUEST) => {
                ensure!(open.insert(control::number(frame.payload)?), "a request's number is used twice");
                frame.decode::<Request>()?;
                say_again(frame, out)?;
            }
            (Operation::Control(open), FrameId::REPLY) => {
                let reply: Reply = frame.decode()?;
                ensure!(open.remove(&reply.number), "a reply to nothing");
                say_again(frame, out)?;
            }
            (_, FrameId::FILE_REPLY) => {
                self.file_reply()?;
                say_again(frame, out)?;
            }
            (Operation::Sink(sink), FrameId::BYE | FrameId::CLIPBOARD_TAKEN) => sink.done(out),
            (Operation::Source(source), FrameId::FAILED) => source.failed(&frame.decode()?, out),
            (
                _,
                FrameId::BYE
                | FrameId::FAILED
                | FrameId::EXEC_DETACH
                | FrameId::EVENT
                | FrameId::FILE_ENTRIES
                | FrameId::FORWARD_LISTENING
                | FrameId::FORWARD_INCOMING
                | FrameId::FORWARD_REFUSE
                | FrameId::COPY_POSITION
                | FrameId::COPY_PROBLEM
                | FrameId::COPY_DONE
                | FrameId::TIME
                | FrameId::TIME_PROBE
                | FrameId::TIME_STAMP
                | FrameId::TIME_REPORT
                | FrameId::CLIPBOARD_OFFER
                | FrameId::CLIPBOARD_WANT
                | FrameId::CLIPBOARD_DECLINE,
            ) => say_again(frame, out)?,
            (_, id) => bail!("today's {:?} would not say {id} of its own accord here", self.side),
        }
        Ok(())
    }

    fn open(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        match frame.id {
            FrameId::CLIENT_HELLO => {
                let recorded: ClientHello = frame.decode()?;
                ensure!(recorded.versions == Version::SUPPORTED, "another release's versions");
                let key = Box::leak(Box::new(host_key()));
                self.host_handshake =
                    Some(handshake::Host::start(key, recorded.capabilities, &host_entropy(), out));
            }
            FrameId::SERVER_HELLO => {
                let recorded: ServerHello = frame.decode()?;
                self.guest_handshake = Some(handshake::Guest::answer(
                    &self.client_hello,
                    &guest_key(),
                    machine(),
                    recorded.body.capabilities,
                    &guest_entropy(),
                    out,
                )?);
            }
            FrameId::TICKET => {
                let (session, secret) = ticket_session();
                let (ticket, opened) = Issuer::new(session, secret).issue();
                self.opened = Some(opened);
                self.proved = true;
                frame::put(FrameId::TICKET, &ticket, out);
            }
            FrameId::OPENED => {
                let opened = self.opened.as_ref().context("no ticket was shown")?;
                frame::put(FrameId::OPENED, opened, out);
            }
            _ => {
                ensure!(self.proved, "READY before the host's proof");
                frame::put(FrameId::READY, &frame.decode::<Ready>()?, out);
            }
        }
        Ok(())
    }

    /// Whether the frame begins an operation, which it then does.
    fn begin(&mut self, frame: Frame<'_>) -> Result<bool> {
        ensure!(self.proved, "{} before anything is proved", frame.id);
        let (host, guest) = (self.side == Side::Host, self.side == Side::Guest);
        self.operation = match (frame.id, &self.operation) {
            (FrameId::EXEC | FrameId::EXEC_ATTACH, Operation::None) => {
                if frame.id == FrameId::EXEC {
                    frame.decode::<exec::Exec>()?.check()?;
                } else {
                    frame.decode::<exec::Attach>()?;
                }
                if host {
                    Operation::ExecHost(exec::Host::new())
                } else {
                    Operation::ExecGuest(exec::Guest::new())
                }
            }
            (FrameId::FORWARD_CONNECT | FrameId::FORWARD_ACCEPT, Operation::None) => {
                if host {
                    Operation::Forward(forward::End::host())
                } else {
                    Operation::Opening(Vec::new())
                }
            }
            (FrameId::FORWARD_LISTEN, Operation::None) => Operation::Listen,
            (FrameId::TIME, Operation::None) => Operation::Time,
            (FrameId::CLIPBOARD, Operation::None) if host => Operation::Clipboard(clipboard::Channel::host()),
            (FrameId::CLIPBOARD, Operation::None) => Operation::Opening(Vec::new()),
            (
                FrameId::CLIPBOARD_FETCH | FrameId::CLIPBOARD_FEED | FrameId::CLIPBOARD_SET,
                Operation::None,
            ) => {
                let side = if host { clipboard::Side::Host } else { clipboard::Side::Guest };
                if host == (frame.id == FrameId::CLIPBOARD_FETCH) {
                    Operation::Sink(clipboard::Sink::new(side))
                } else {
                    Operation::Source(clipboard::Source::new(side))
                }
            }
            (FrameId::FILE, Operation::None) => {
                let request: file::FileRequest = frame.decode()?;
                ensure!(request.verb.paths_are_sane(), "a path that is none");
                let (out, inward) =
                    if guest { (file::READ, file::WRITTEN) } else { (file::WRITTEN, file::READ) };
                Operation::File { sender: Sender::new(out), receiver: Receiver::new(inward), replied: false }
            }
            (FrameId::COPY_PUSH | FrameId::COPY_PULL | FrameId::COPY_RESUME, Operation::None) => {
                let push = match frame.id {
                    FrameId::COPY_PUSH => frame.decode::<copy::Push>()?.check().map(|()| true)?,
                    FrameId::COPY_PULL => frame.decode::<copy::Pull>()?.check().map(|()| false)?,
                    // The only copy that is taken up again in the vectors is a push.
                    _ => frame.decode::<copy::Resume>().map(|_| true)?,
                };
                let sends = push == host;
                Operation::Copy {
                    sender: sends.then(|| Sender::new(ARCHIVE)),
                    receiver: (!sends).then(|| (Receiver::exact(ARCHIVE), Decoder::new())),
                    done: !push,
                }
            }
            (FrameId::CONTROL, Operation::None) => Operation::Control(BTreeSet::new()),
            (FrameId::REQUEST, Operation::None) => {
                Operation::Control(BTreeSet::from([control::number(frame.payload)?]))
            }
            _ => return Ok(false),
        };
        Ok(true)
    }

    fn say_data(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        let len = frame.payload.len();
        let header: Header = match &mut self.operation {
            Operation::ExecHost(host) => host.stdin(len),
            Operation::ExecGuest(guest) => guest.output_data(frame.channel, len),
            Operation::Forward(end) => end.data(len),
            Operation::Source(source) => source.data(len),
            Operation::File { sender, .. } | Operation::Copy { sender: Some(sender), .. } => sender.data(len),
            _ => bail!("no stream is open"),
        };
        out.extend_from_slice(&header.to_bytes());
        out.extend_from_slice(frame.payload);
        Ok(())
    }

    fn say_end(&mut self, frames: &[Frame<'_>], out: &mut Vec<u8>) -> Result<()> {
        match &mut self.operation {
            Operation::ExecHost(host) => host.stdin_end(out),
            Operation::ExecGuest(guest) => {
                // Today's guest says both ends and the status in one breath.
                let exited = frames.iter().find(|frame| frame.id == FrameId::EXEC_EXITED);
                guest.exited(&exited.context("no exit status follows")?.decode()?, out);
            }
            Operation::Forward(end) => end.end(out),
            Operation::Source(source) => source.end(out),
            Operation::File { sender, .. } | Operation::Copy { sender: Some(sender), .. } => sender.end(out),
            _ => bail!("no stream is open"),
        }
        Ok(())
    }

    fn say_unwanted(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        match &mut self.operation {
            Operation::ExecHost(host) => host.output_closed(frame.channel, out),
            Operation::ExecGuest(guest) => guest.stdin_closed(out),
            Operation::Forward(end) => end.refuse(out),
            Operation::Sink(sink) => sink.refuse(out),
            Operation::File { receiver, .. } => receiver.refuse(out),
            _ => bail!("no stream is open"),
        }
        Ok(())
    }

    fn receive(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        match frame.id {
            FrameId::CLIENT_HELLO => self.client_hello = frame.payload.to_vec(),
            FrameId::SERVER_HELLO => {
                let host = self.host_handshake.take().context("no hello was sent")?;
                let session = host.finish(frame.payload, out)?;
                ensure!(session.peer == guest_key().public(), "another guest");
                self.proved = true;
            }
            FrameId::CLIENT_AUTH => {
                let guest = self.guest_handshake.take().context("no hello was answered")?;
                ensure!(guest.finish(frame.payload)?.peer == host_key().public(), "another host");
                self.proved = true;
            }
            FrameId::READY => drop(frame.decode::<Ready>()?),
            FrameId::TICKET => {
                let (session, secret) = ticket_session();
                self.opened = Some(Window::new(session, secret).take(&frame.decode::<Ticket>()?)?);
                self.proved = true;
            }
            FrameId::OPENED => {
                let expected = self.opened.as_ref().context("no ticket was shown")?;
                ensure!(expected.matches(&frame.decode()?), "the guest does not know the session");
            }
            _ if self.side == Side::Guest && self.begin(frame)? => {}
            _ => self.operate(frame, out)?,
        }
        Ok(())
    }

    fn operate(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
        match &mut self.operation {
            Operation::ExecHost(host) => {
                if let exec::HostStep::Output(channel, bytes) = host.receive(frame)? {
                    host.written(channel, bytes.len(), out);
                }
            }
            Operation::ExecGuest(guest) => {
                if let exec::GuestStep::Stdin(bytes) = guest.receive(frame, out)? {
                    guest.stdin_written(bytes.len(), out);
                }
            }
            Operation::Forward(end) => {
                if let forward::Step::Bytes(bytes) = end.receive(frame)? {
                    end.written(bytes.len(), out);
                }
            }
            Operation::Clipboard(channel) => drop(channel.receive(frame)?),
            Operation::Source(source) => drop(source.receive(frame)?),
            Operation::Sink(sink) => {
                if let clipboard::SinkStep::Bytes(bytes) = sink.receive(frame)? {
                    sink.taken(bytes.len(), out);
                }
            }
            Operation::Copy { sender, receiver, done } => match (frame.id, sender, receiver) {
                (FrameId::DATA, _, Some((receiver, decoder))) => {
                    receiver.data(frame.payload.len())?;
                    let mut again = Vec::new();
                    for record in decoder.records(frame.payload) {
                        record?.encode(&mut again);
                    }
                    ensure!(again == frame.payload, "the archive is written as {again:02x?} today");
                    receiver.taken(frame.payload.len(), out);
                }
                (FrameId::END, _, Some((receiver, decoder))) => {
                    receiver.end(frame.decode()?)?;
                    decoder.end()?;
                }
                (FrameId::CREDIT, Some(sender), _) => sender.granted(frame.decode()?)?,
                (FrameId::COPY_DONE, Some(_), _) => *done = true,
                _ => check_again(frame)?,
            },
            Operation::File { sender, receiver, .. } => match frame.id {
                FrameId::DATA => {
                    receiver.data(frame.payload.len())?;
                    receiver.taken(frame.payload.len(), out);
                }
                FrameId::END => receiver.end(frame.decode()?)?,
                FrameId::CREDIT => sender.granted(frame.decode()?)?,
                FrameId::UNWANTED => sender.refused(),
                FrameId::FILE_REPLY => {
                    frame.decode::<file::FileReply>()?;
                    self.file_reply()?;
                }
                _ => check_again(frame)?,
            },
            Operation::Control(open) => match frame.id {
                FrameId::REQUEST => {
                    ensure!(open.insert(control::number(frame.payload)?), "a request's number is used twice");
                    frame.decode::<Request>()?;
                }
                FrameId::REPLY => {
                    let reply: Reply = frame.decode()?;
                    ensure!(open.remove(&reply.number), "a reply to nothing");
                }
                _ => check_again(frame)?,
            },
            Operation::Opening(waiting) => {
                let mut wire = Vec::new();
                frame::put_raw(frame.id, frame.channel, frame.payload, &mut wire);
                waiting.extend(split(Side::Host, &wire));
            }
            Operation::Listen | Operation::Time | Operation::None => check_again(frame)?,
        }
        Ok(())
    }

    fn file_reply(&mut self) -> Result<()> {
        let Operation::File { replied, .. } = &mut self.operation else { bail!("no file verb is under way") };
        ensure!(!*replied, "a second reply");
        *replied = true;
        Ok(())
    }

    /// The connection closed: was the operation over?
    fn closed(&self) -> Result<()> {
        match &self.operation {
            Operation::ExecHost(host) => host.closed()?,
            Operation::ExecGuest(guest) => ensure!(guest.is_done(), "the command has not ended"),
            Operation::Forward(end) => end.closed()?,
            Operation::Source(source) => ensure!(source.is_over(), "nobody said that the bytes are taken"),
            Operation::Sink(sink) => sink.closed()?,
            Operation::File { replied, .. } => ensure!(*replied, "no reply came"),
            Operation::Copy { receiver: Some((receiver, _)), .. } => {
                ensure!(receiver.is_ended(), "the archive has not ended");
            }
            Operation::Copy { done, .. } => ensure!(*done, "nobody said that the copy is done"),
            Operation::Control(open) => ensure!(open.is_empty(), "requests without a reply: {open:?}"),
            Operation::Opening(_)
            | Operation::Clipboard(_)
            | Operation::Listen
            | Operation::Time
            | Operation::None => {}
        }
        Ok(())
    }
}

/// Says a message as today's codec has it.
fn say_again(frame: Frame<'_>, out: &mut Vec<u8>) -> Result<()> {
    let payload = recode(frame.id, frame.payload).context("an id without a message")??;
    frame::put_raw(frame.id, frame.channel, &payload, out);
    ensure!(out.len() >= HEADER_LEN, "nothing was said");
    Ok(())
}

fn check_again(frame: Frame<'_>) -> Result<()> {
    ensure!(frame.id.name().is_some(), "an id of no release");
    recode(frame.id, frame.payload).context("an id without a message")??;
    Ok(())
}
