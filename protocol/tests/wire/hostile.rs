//! What must be refused, and how: `hostile/RECEIVER/ERROR/*.bin`.

use hospes_protocol::clipboard::files::{
    Ask, Attributes as Found, Borrower, Deed, Entries, Entry, FilesError, Lender, Node, NodeKind, Root, Roots,
};
use hospes_protocol::clipboard::{
    self, Channel, ClipboardError, Offer, Selection, Share, Sink, Source, Taken, Want,
};
use hospes_protocol::codec::CodecError;
use hospes_protocol::copy::archive::{ArchiveError, Attributes, Decoder, Record};
use hospes_protocol::error::ErrorKind;
use hospes_protocol::exec::{self, Exec, ExecError, ExitKind, ExitStatus, Exited, Started, Usage};
use hospes_protocol::file::{FileRequest, Verb};
use hospes_protocol::forward::{self, Address, Connect, ForwardError, Open};
use hospes_protocol::frame::{self, Frame, FrameBuffer, FrameError, FrameId};
use hospes_protocol::handshake::{self, HandshakeError};
use hospes_protocol::limits::{ARGV, COPY_NAME, DATA_LEN, INITIAL_CREDIT, PATH};
use hospes_protocol::stream::StreamError;
use hospes_protocol::ticket::{Ticket, Window};
use hospes_protocol::variable::{self, Owner};
use hospes_protocol::version::{Capabilities, Version};

use super::recode::recode;
use super::samples::payload;
use super::{guest_entropy, guest_key, host_entropy, host_key, machine, ticket_session};

/// Feeds bytes to a receiver, by name; its error's name, or `None` where all was taken.
pub(crate) fn refused_as(receiver: &str, bytes: &[u8]) -> Option<&'static str> {
    let outcome = match receiver {
        "message" => frames(bytes, |frame| match recode(frame.id, frame.payload) {
            Some(Err(error)) => Err(codec_error(&error)),
            Some(Ok(_)) | None => Ok(()),
        }),
        "request" => frames(bytes, request),
        "exec-host" => exec_host(bytes),
        "exec-guest" => exec_guest(bytes),
        "archive" => {
            let mut decoder = Decoder::new();
            let read = frames(bytes, |frame| {
                decoder
                    .records(frame.payload)
                    .try_for_each(|record| record.map(drop))
                    .map_err(|e| archive_error(&e))
            });
            read.and_then(|()| decoder.end().map_err(|error| archive_error(&error)))
        }
        "forward-host" => forward_end(forward::End::host(), bytes),
        "forward-guest" => {
            forward_end(forward::End::guest(&Open { peer: String::new() }, &mut Vec::new()), bytes)
        }
        "clipboard-host" => clipboard_channel(Channel::host(), bytes),
        "clipboard-guest" => {
            let ready = clipboard::Ready {
                user: String::new(),
                back_end: String::new(),
                selections: Vec::new(),
                share: Share { to_guest: true, to_host: true },
            };
            clipboard_channel(Channel::guest(&ready, &mut Vec::new()), bytes)
        }
        "clipboard-sink" => {
            let mut sink = Sink::new(clipboard::Side::Host);
            frames(bytes, |frame| sink.receive(frame).map(drop).map_err(|error| clipboard_error(&error)))
                .and_then(|()| sink.closed().map_err(|error| clipboard_error(&error)))
        }
        "clipboard-borrower" => {
            let mut borrower = Borrower::new();
            let ask = |deed| Ask { id: 0, deed, root: 0, path: Vec::new(), handle: 0, offset: 0, len: 4 };
            borrower.ask(ask(Deed::MORE), &mut Vec::new());
            borrower.ask(ask(Deed::READ), &mut Vec::new());
            frames(bytes, |frame| borrower.receive(frame).map(drop).map_err(|error| files_error(&error)))
        }
        "clipboard-lender" => {
            let mut lender = Lender::new(&Roots::default(), &mut Vec::new());
            frames(bytes, |frame| lender.receive(frame).map(drop).map_err(|error| files_error(&error)))
        }
        "clipboard-source" => {
            let mut source = Source::new(clipboard::Side::Host);
            source.data(2);
            source.end(&mut Vec::new());
            frames(bytes, |frame| source.receive(frame).map(drop).map_err(|error| clipboard_error(&error)))
        }
        "handshake-host" => frames(bytes, |frame| {
            let key = host_key();
            let host = handshake::Host::start(&key, Capabilities(0), &host_entropy(), &mut Vec::new());
            host.finish(frame.payload, &mut Vec::new()).map(drop).map_err(|error| handshake_error(&error))
        }),
        "handshake-guest" => {
            let mut guest = None;
            frames(bytes, |frame| match guest.take() {
                None => {
                    let (key, entropy) = (guest_key(), guest_entropy());
                    guest = Some(
                        handshake::Guest::answer(
                            frame.payload,
                            &key,
                            machine(),
                            Capabilities(0),
                            &entropy,
                            &mut Vec::new(),
                        )
                        .map_err(|error| handshake_error(&error))?,
                    );
                    Ok(())
                }
                Some(answered) => {
                    answered.finish(frame.payload).map(drop).map_err(|error| handshake_error(&error))
                }
            })
        }
        "ticket" => {
            let (session, secret) = ticket_session();
            let mut window = Window::new(session, secret);
            frames(bytes, |frame| {
                let ticket: Ticket = frame.decode().map_err(|error| codec_error(&error))?;
                window.take(&ticket).map(drop).map_err(|error| match error.kind {
                    ErrorKind::STALE_TICKET => "stale",
                    ErrorKind::UNPROVED => "unproved",
                    _ => "other",
                })
            })
        }
        other => panic!("no receiver named {other}"),
    };
    outcome.err()
}

type Outcome = Result<(), &'static str>;

/// Cuts bytes into frames as a connection does; bytes that end inside a frame were cut.
fn frames(bytes: &[u8], mut each: impl FnMut(Frame<'_>) -> Outcome) -> Outcome {
    let mut buffer = FrameBuffer::new();
    let mut rest = bytes;
    loop {
        match buffer.take() {
            Ok(Some(frame)) => each(frame)?,
            Err(FrameError::TooLong { .. }) => return Err("frame-too-long"),
            Ok(None) if rest.is_empty() => return if buffer.is_empty() { Ok(()) } else { Err("cut") },
            Ok(None) => {
                buffer.push(rest);
                rest = &[];
            }
        }
    }
}

fn exec_host(bytes: &[u8]) -> Outcome {
    let mut host = exec::Host::new();
    frames(bytes, |frame| host.receive(frame).map(drop).map_err(|error| exec_error(&error)))?;
    host.closed().map_err(|error| exec_error(&error))
}

fn exec_guest(bytes: &[u8]) -> Outcome {
    let mut guest = exec::Guest::new();
    frames(bytes, |frame| guest.receive(frame, &mut Vec::new()).map(drop).map_err(|error| exec_error(&error)))
}

fn forward_end(mut end: forward::End, bytes: &[u8]) -> Outcome {
    frames(bytes, |frame| end.receive(frame).map(drop).map_err(|error| forward_error(&error)))?;
    end.closed().map_err(|error| forward_error(&error))
}

/// What the guest checks of a request once it has decoded.
fn request(frame: Frame<'_>) -> Outcome {
    fn decode<T: serde::de::DeserializeOwned>(frame: Frame<'_>) -> Result<T, &'static str> {
        frame.decode().map_err(|error| codec_error(&error))
    }
    match frame.id {
        FrameId::EXEC => decode::<Exec>(frame)?.check().map_err(|error| exec_error(&error)),
        FrameId::FILE => match decode::<FileRequest>(frame)?.verb.paths_are_sane() {
            true => Ok(()),
            false => Err("path"),
        },
        FrameId::FORWARD_CONNECT => match decode::<Connect>(frame)?.to.is_sane() {
            true => Ok(()),
            false => Err("address"),
        },
        FrameId::REQUEST => match decode::<hospes_protocol::control::Request>(frame)?.ask {
            hospes_protocol::control::Ask::VariableSet(variable) => {
                variable::check_name(&variable.name, Owner::Host).map_err(|_| "name")?;
                variable::check_value(&variable.value).map_err(|_| "value")
            }
            _ => Ok(()),
        },
        other => panic!("no check for {other}"),
    }
}

fn codec_error(error: &CodecError) -> &'static str {
    match error {
        CodecError::Malformed { .. } => "malformed",
        CodecError::Trailing { .. } => "trailing",
    }
}

fn stream_error(error: &StreamError) -> &'static str {
    match error {
        StreamError::Overrun { .. } => "overrun",
        StreamError::AfterEnd { .. } => "after-end",
        StreamError::Count { .. } => "count",
        StreamError::Grant { .. } => "grant",
        StreamError::NoSuchStream { .. } => "no-such-stream",
        StreamError::Codec(error) => codec_error(error),
    }
}

fn exec_error(error: &ExecError) -> &'static str {
    match error {
        ExecError::Stream(error) => stream_error(error),
        ExecError::Codec(error) => codec_error(error),
        ExecError::Unexpected { .. } => "unexpected",
        ExecError::EarlyExit => "early-exit",
        ExecError::Cut { .. } => "cut",
        ExecError::TooMany { .. } => "too-many",
        ExecError::Nul { .. } => "nul",
        ExecError::EnvName => "env-name",
    }
}

fn archive_error(error: &ArchiveError) -> &'static str {
    match error {
        ArchiveError::Short => "short",
        ArchiveError::Tag { .. } => "tag",
        ArchiveError::Range { .. } => "range",
        ArchiveError::Long { .. } => "long",
        ArchiveError::Name { .. } => "name",
        ArchiveError::Target => "target",
        ArchiveError::Misplaced { .. } => "misplaced",
        ArchiveError::Deep => "deep",
        ArchiveError::Size { .. } => "size",
        ArchiveError::Link { .. } => "link",
        ArchiveError::Open { .. } => "open",
    }
}

fn forward_error(error: &ForwardError) -> &'static str {
    match error {
        ForwardError::Stream(error) => stream_error(error),
        ForwardError::Codec(error) => codec_error(error),
        ForwardError::Unexpected { .. } => "unexpected",
        ForwardError::Cut { .. } => "cut",
        #[allow(unreachable_patterns, reason = "a frame that is none is refused before it gets here")]
        _ => "frame-too-long",
    }
}

fn clipboard_channel(mut channel: Channel, bytes: &[u8]) -> Outcome {
    frames(bytes, |frame| channel.receive(frame).map(drop).map_err(|error| clipboard_error(&error)))
}

fn clipboard_error(error: &ClipboardError) -> &'static str {
    match error {
        ClipboardError::Stream(error) => stream_error(error),
        ClipboardError::Codec(error) => codec_error(error),
        ClipboardError::Type(_) => "type",
        ClipboardError::Serial { .. } => "serial",
        ClipboardError::Unexpected { .. } => "unexpected",
        ClipboardError::Cut { .. } => "cut",
    }
}

fn files_error(error: &FilesError) -> &'static str {
    match error {
        FilesError::Codec(error) => codec_error(error),
        FilesError::Unexpected { .. } => "unexpected",
        FilesError::Answer { .. } => "answer",
        FilesError::Name { .. } => "name",
        FilesError::TooMany { .. } => "too-many",
    }
}

fn handshake_error(error: &HandshakeError) -> &'static str {
    match error {
        HandshakeError::Codec(error) => codec_error(error),
        HandshakeError::Version { .. } => "version",
        HandshakeError::Unproved(_) => "unproved",
        HandshakeError::Share => "share",
    }
}

/// Files by `RECEIVER/ERROR/NAME`.
pub(crate) fn all() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut add = |path: &str, frames: &[Vec<u8>]| files.push((path.to_owned(), frames.concat()));
    messages(&mut add);
    requests(&mut add);
    exec_frames(&mut add);
    forward_frames(&mut add);
    clipboard_frames(&mut add);
    archives(&mut add);
    handshakes(&mut add);
    tickets(&mut add);
    files
}

type Add<'a> = dyn FnMut(&str, &[Vec<u8>]) + 'a;

/// A frame with any header, ours or not.
fn claim(id: FrameId, channel: u16, len: u32, bytes: &[u8]) -> Vec<u8> {
    let mut wire = frame::Header { id, channel, len }.to_bytes().to_vec();
    wire.extend_from_slice(bytes);
    wire
}

fn framed(id: FrameId, channel: u16, bytes: &[u8]) -> Vec<u8> {
    claim(id, channel, u32::try_from(bytes.len()).unwrap(), bytes)
}

fn message<T: serde::Serialize>(id: FrameId, channel: u16, message: &T) -> Vec<u8> {
    framed(id, channel, &payload(message))
}

/// A variable-length integer of eight bytes.
fn wide(n: u64) -> Vec<u8> {
    [&[253][..], &n.to_le_bytes()].concat()
}

fn messages(add: &mut Add<'_>) {
    let good = payload(&super::samples::exec());
    add("message/cut/half-a-header", &[vec![0, 1, 0]]);
    add("message/cut/half-a-payload", &[claim(FrameId::EXEC, 0, 100, &good[..20])]);
    add("message/cut/nothing-behind-the-header", &[claim(FrameId::EVENT, 0, 1, &[])]);
    for id in
        [FrameId::CLIENT_HELLO, FrameId::BYE, FrameId::DATA, FrameId::EXEC, FrameId::EVENT, FrameId(0x7777)]
    {
        let name = id.name().map_or_else(|| "no-such-id".into(), str::to_lowercase).replace('_', "-");
        add(&format!("message/frame-too-long/{name}"), &[claim(id, 0, id.max_len() + 1, &[])]);
        add(&format!("message/frame-too-long/{name}-most"), &[claim(id, 0, u32::MAX, &[])]);
    }
    add("message/malformed/exec-short", &[framed(FrameId::EXEC, 0, &good[..good.len() - 1])]);
    add("message/malformed/exec-empty", &[framed(FrameId::EXEC, 0, &[])]);
    add("message/trailing/exec", &[framed(FrameId::EXEC, 0, &[&good[..], &[0]].concat())]);
    add("message/trailing/end", &[framed(FrameId::END, 1, &[5, 0])]);
    // The user's name claims 2^60 bytes; the argument list claims 2^60 entries.
    add("message/malformed/exec-name-claim", &[framed(FrameId::EXEC, 0, &wide(1 << 60))]);
    add(
        "message/malformed/exec-argv-claim",
        &[framed(FrameId::EXEC, 0, &[&[0][..], &wide(1 << 60)].concat())],
    );
    add("message/malformed/entries-claim", &[framed(FrameId::FILE_ENTRIES, 0, &wide(u64::MAX))]);
    add("message/malformed/exec-name-not-utf8", &[framed(FrameId::EXEC, 0, &[2, 0xc3, 0x28])]);
    add("message/malformed/event-name-not-utf8", &[framed(FrameId::EVENT, 0, &[2, 1, 0xff])]);
    add("message/malformed/request-no-such-ask", &[framed(FrameId::REQUEST, 0, &[1, 200])]);
    add("message/malformed/request-freeze-cut", &[framed(FrameId::REQUEST, 0, &[1, 8, 0])]);
    add("message/malformed/request-thaw-bad-option", &[framed(FrameId::REQUEST, 0, &[1, 9, 2, 7])]);
    add("message/trailing/request-trim", &[framed(FrameId::REQUEST, 0, &[1, 10, 0, 0])]);
    // A freeze's list claims 2^60 file systems.
    add(
        "message/malformed/reply-freeze-claim",
        &[framed(FrameId::REPLY, 0, &[&[9, 0, 6, 7, 0][..], &wide(1 << 60)].concat())],
    );
    add("message/malformed/event-no-such-event", &[framed(FrameId::EVENT, 0, &[250])]);
    add("message/malformed/file-no-such-verb", &[framed(FrameId::FILE, 0, &[0, 99])]);
    add("message/malformed/kill-bad-target", &[framed(FrameId::KILL, 0, &[0, 2, 0, 9])]);
    add(
        "message/malformed/exec-bool-of-two",
        &[framed(FrameId::EXEC, 0, &[0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0])],
    );
    add(
        "message/malformed/exec-option-of-two",
        &[framed(FrameId::EXEC, 0, &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])],
    );
    add("message/malformed/reply-neither-result", &[framed(FrameId::REPLY, 0, &[1, 2, 0])]);
    add("message/malformed/credit-over-u32", &[framed(FrameId::CREDIT, 1, &wide(1 << 32))]);
    add("message/malformed/integer-of-no-width", &[framed(FrameId::END, 1, &[255])]);
    add(
        "message/malformed/integer-of-128-bits",
        &[framed(FrameId::END, 1, &[&[254][..], &[0; 16]].concat())],
    );
    add("message/malformed/integer-cut", &[framed(FrameId::END, 1, &[253, 1, 2])]);
    add("message/malformed/auth-short", &[framed(FrameId::CLIENT_AUTH, 0, &[7; 63])]);
    add("message/trailing/auth-long", &[framed(FrameId::CLIENT_AUTH, 0, &[7; 65])]);
}

fn requests(add: &mut Add<'_>) {
    let exec = |exec: Exec| message(FrameId::EXEC, 0, &exec);
    let many = Exec { argv: vec![Vec::new(); ARGV + 1], ..Exec::default() };
    add("request/too-many/arguments", &[exec(many)]);
    add("request/too-many/user-name", &[exec(Exec { user: "u".repeat(257), ..Exec::default() })]);
    add("request/too-many/cwd", &[exec(Exec { cwd: Some(vec![b'a'; PATH + 1]), ..Exec::default() })]);
    add("request/nul/argument", &[exec(Exec { argv: vec![b"a\0b".to_vec()], ..Exec::default() })]);
    add("request/nul/cwd", &[exec(Exec { cwd: Some(b"/\0".to_vec()), ..Exec::default() })]);
    let env =
        |name: &[u8], value: &[u8]| Exec { env: vec![(name.to_vec(), value.to_vec())], ..Exec::default() };
    add("request/nul/environment", &[exec(env(b"A", b"\0"))]);
    add("request/env-name/empty", &[exec(env(b"", b"x"))]);
    add("request/env-name/equals-sign", &[exec(env(b"A=B", b"x"))]);
    let file = |verb| message(FrameId::FILE, 0, &FileRequest { user: String::new(), verb });
    add("request/path/empty", &[file(Verb::List { path: Vec::new() })]);
    add("request/path/nul", &[file(Verb::List { path: b"a\0".to_vec() })]);
    add("request/path/long", &[file(Verb::List { path: vec![b'a'; PATH + 1] })]);
    let temp = |prefix: &[u8]| Verb::Temp {
        directory: None,
        prefix: prefix.to_vec(),
        suffix: Vec::new(),
        make_directory: false,
    };
    add("request/path/temp-prefix-leaves", &[file(temp(b"../../etc/x"))]);
    let connect = |to| message(FrameId::FORWARD_CONNECT, 0, &Connect { user: String::new(), to });
    add("request/address/no-host", &[connect(Address::Tcp { host: String::new(), port: 1 })]);
    add("request/address/escape-in-host", &[connect(Address::Tcp { host: "a\x1b[2J".into(), port: 1 })]);
    add("request/address/nul-in-path", &[connect(Address::Unix { path: b"/a\0b".to_vec() })]);
    let set = |name: &str, len| {
        let variable = variable::Variable { name: name.into(), value: vec![b'v'; len], secret: false };
        let ask = hospes_protocol::control::Ask::VariableSet(variable);
        message(FrameId::REQUEST, 0, &hospes_protocol::control::Request { number: 1, ask })
    };
    add("request/name/of-the-guest", &[set("guest.ready", 1)]);
    add("request/name/slash", &[set("../x", 1)]);
    add("request/name/long", &[set(&"x".repeat(129), 1)]);
    add("request/value/long", &[set("x", 65_537)]);
}

fn started() -> Vec<u8> {
    message(FrameId::EXEC_STARTED, 0, &Started { id: exec::ExecId(1), pid: 2, lost: [0, 0] })
}

fn exited() -> Vec<u8> {
    let status = ExitStatus { kind: ExitKind::CODE, value: 0 };
    message(FrameId::EXEC_EXITED, 0, &Exited { status, timed_out: false, usage: Usage::default() })
}

fn end(channel: u16, total: u64) -> Vec<u8> {
    message(FrameId::END, channel, &total)
}

/// Data frames that fill the first window, and one byte.
fn flood(channel: u16) -> Vec<Vec<u8>> {
    let full = framed(FrameId::DATA, channel, &vec![0; DATA_LEN as usize]);
    let mut frames = vec![full; (INITIAL_CREDIT / DATA_LEN) as usize];
    frames.push(framed(FrameId::DATA, channel, &[0]));
    frames
}

fn exec_frames(add: &mut Add<'_>) {
    add("exec-host/cut/before-the-start", &[]);
    add("exec-host/cut/before-the-status", &[started(), end(1, 0), end(2, 0)]);
    add("exec-host/early-exit/no-end", &[started(), exited()]);
    add("exec-host/early-exit/one-end", &[started(), end(1, 0), exited()]);
    add("exec-host/count/short", &[started(), framed(FrameId::DATA, 1, b"abc"), end(1, 4)]);
    add("exec-host/count/long", &[started(), framed(FrameId::DATA, 1, b"abc"), end(1, 2)]);
    add("exec-host/after-end/data", &[started(), end(1, 0), framed(FrameId::DATA, 1, b"x")]);
    add("exec-host/after-end/second-end", &[started(), end(2, 0), end(2, 0)]);
    add("exec-host/no-such-stream/stdin-to-the-host", &[started(), framed(FrameId::DATA, 0, b"x")]);
    add("exec-host/no-such-stream/third", &[started(), framed(FrameId::DATA, 3, b"x")]);
    add("exec-host/no-such-stream/credit-for-stdout", &[started(), message(FrameId::CREDIT, 1, &1u32)]);
    add("exec-host/unexpected/output-before-the-start", &[framed(FrameId::DATA, 1, b"x")]);
    add("exec-host/unexpected/second-start", &[started(), started()]);
    add("exec-host/unexpected/hello", &[framed(FrameId::SERVER_HELLO, 0, &[])]);
    let over = [started(), end(1, 0), end(2, 0), exited()].concat();
    add("exec-host/unexpected/output-after-the-status", &[over.clone(), framed(FrameId::DATA, 1, b"x")]);
    add("exec-host/unexpected/failure-after-the-status", &[over, framed(FrameId::FAILED, 0, &[0, 0, 0])]);

    add("exec-guest/overrun/stdin", &flood(0));
    add("exec-guest/after-end/data", &[end(0, 0), framed(FrameId::DATA, 0, b"x")]);
    add("exec-guest/count/short", &[framed(FrameId::DATA, 0, b"abc"), end(0, 9)]);
    add("exec-guest/no-such-stream/stdout-to-the-guest", &[framed(FrameId::DATA, 1, b"x")]);
    add("exec-guest/no-such-stream/credit-for-stdin", &[message(FrameId::CREDIT, 0, &1u32)]);
    add("exec-guest/no-such-stream/unwanted-stdin", &[framed(FrameId::UNWANTED, 0, &[])]);
    add("exec-guest/unexpected/second-request", &[framed(FrameId::EXEC, 0, &[])]);
    add("exec-guest/unexpected/status", &[exited()]);
    add("exec-guest/malformed/signal-of-two-bytes", &[framed(FrameId::EXEC_SIGNAL, 0, &[])]);
    add("exec-guest/trailing/signal", &[framed(FrameId::EXEC_SIGNAL, 0, &[9, 9])]);
}

fn forward_frames(add: &mut Add<'_>) {
    let open = || message(FrameId::FORWARD_OPEN, 0, &Open { peer: "x".into() });
    add("forward-host/cut/before-the-open", &[]);
    add("forward-host/cut/one-end", &[open(), end(1, 0)]);
    add("forward-host/unexpected/second-open", &[open(), open()]);
    add("forward-host/unexpected/data-before-the-open", &[framed(FrameId::DATA, 1, b"x")]);
    add("forward-host/no-such-stream/our-own", &[open(), framed(FrameId::DATA, 0, b"x")]);
    add("forward-host/count/long", &[open(), end(1, 1)]);
    add("forward-guest/unexpected/open", &[open()]);
    add("forward-guest/no-such-stream/credit", &[message(FrameId::CREDIT, 0, &1u32)]);
    add("forward-guest/after-end/end", &[end(0, 0), end(0, 0)]);
    add("forward-guest/cut/one-end", &[end(0, 0)]);
}

fn clipboard_frames(add: &mut Add<'_>) {
    let selection = Selection::CLIPBOARD;
    let offer = |serial, types: Vec<String>| {
        message(FrameId::CLIPBOARD_OFFER, 0, &Offer { serial, selection, types })
    };
    let want = message(
        FrameId::CLIPBOARD_WANT,
        0,
        &Want { call: [0; 16], selection, serial: 1, kind: "a/b".into() },
    );
    add("clipboard-host/unexpected/want-before-ready", std::slice::from_ref(&want));
    add("clipboard-host/unexpected/offer-before-ready", &[offer(1, Vec::new())]);
    add("clipboard-guest/unexpected/want", &[want]);
    add("clipboard-guest/serial/zero", &[offer(0, Vec::new())]);
    add("clipboard-guest/serial/again", &[offer(2, Vec::new()), offer(2, Vec::new())]);
    add("clipboard-guest/type/escape", &[offer(1, vec!["text/\u{1b}[2J".into()])]);
    add("clipboard-guest/type/long", &[offer(1, vec!["x".repeat(256)])]);
    add("clipboard-guest/type/many", &[offer(1, vec!["a".into(); 129])]);
    add("clipboard-sink/cut/before-the-end", &[framed(FrameId::DATA, 1, b"abc")]);
    add("clipboard-sink/count/short", &[framed(FrameId::DATA, 1, b"abc"), end(1, 9)]);
    add("clipboard-sink/overrun/flood", &flood(1));
    add("clipboard-sink/no-such-stream/our-own", &[framed(FrameId::DATA, 0, b"x")]);
    add("clipboard-source/count/less", &[message(FrameId::CLIPBOARD_TAKEN, 0, &Taken { bytes: 1 })]);
    lendings(add);
}

fn lendings(add: &mut Add<'_>) {
    let roots = |name: &[u8], uri: &str| {
        let root = Root { name: name.to_vec(), uri: uri.into(), shared: None };
        message(FrameId::CLIPBOARD_ROOTS, 0, &Roots { roots: vec![root] })
    };
    add("clipboard-borrower/name/up", &[roots(b"..", "")]);
    add("clipboard-borrower/name/slash", &[roots(b"a/b", "")]);
    add("clipboard-borrower/name/file-as-link", &[roots(b"", "file:///etc/passwd")]);
    add("clipboard-borrower/name/two-lines", &[roots(b"", "http://x/\r\nfile:///etc/passwd")]);
    let twice = roots(b"a", "");
    add("clipboard-borrower/unexpected/roots-twice", &[twice.clone(), twice]);
    let attributes = |kind, target: &[u8]| {
        let target = target.to_vec();
        Found { kind, executable: false, size: 0, modified: 0, modified_ns: 0, target }
    };
    let entries = |name: &[u8], attributes| {
        let entries = vec![Entry { name: name.to_vec(), attributes }];
        message(FrameId::CLIPBOARD_ENTRIES, 0, &Entries { id: 1, entries })
    };
    let file = || attributes(NodeKind::FILE, b"");
    add("clipboard-borrower/name/entry-up", &[entries(b"../x", file())]);
    add("clipboard-borrower/name/entry-nul", &[entries(b"a\0b", file())]);
    add("clipboard-borrower/name/entry-long", &[entries(&[b'x'; 256], file())]);
    add("clipboard-borrower/name/link-to-nothing", &[entries(b"x", attributes(NodeKind::LINK, b""))]);
    let many = vec![Entry { name: b"x".to_vec(), attributes: file() }; 257];
    let many = message(FrameId::CLIPBOARD_ENTRIES, 0, &Entries { id: 1, entries: many });
    add("clipboard-borrower/too-many/entries", &[many]);
    let node = message(FrameId::CLIPBOARD_NODE, 0, &Node { id: 1, attributes: file() });
    add("clipboard-borrower/answer/another-kind", &[node]);
    add(
        "clipboard-borrower/answer/not-the-next",
        &[framed(FrameId::CLIPBOARD_BYTES, 0, b"\x02\0\0\0\0\0\0\0abcd")],
    );
    add("clipboard-borrower/unexpected/no-number", &[framed(FrameId::CLIPBOARD_BYTES, 0, b"\x01\0")]);
    let ask = |path: &[u8], len| {
        let path = path.to_vec();
        let ask = Ask { id: 1, deed: Deed::STAT, root: 0, path, handle: 0, offset: 0, len };
        message(FrameId::CLIPBOARD_ASK, 0, &ask)
    };
    add("clipboard-lender/name/up", &[ask(b"a/../../etc", 0)]);
    add("clipboard-lender/name/root", &[ask(b"/etc/passwd", 0)]);
    add("clipboard-lender/too-many/bytes", &[ask(b"", u32::MAX)]);
    add("clipboard-lender/unexpected/an-answer", &[framed(FrameId::CLIPBOARD_REFUSAL, 0, b"\x01\x17")]);
}

fn archives(add: &mut Add<'_>) {
    let data = |bytes: &[u8]| framed(FrameId::DATA, 0, bytes);
    let records = |records: &[Record<'_>]| {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        data(&bytes)
    };
    let attributes = Attributes::default();
    let enter = |name| Record::Enter { name, attributes: None };
    let file = |size| Record::File { name: b"f", attributes, size, linked: false, sparse: false };
    for (name, bytes) in [
        ("dot", &b"."[..]),
        ("dots", b".."),
        ("slash", b"a/../b"),
        ("root", b"/etc"),
        ("nul", b"a\0"),
        ("empty", b""),
    ] {
        add(&format!("archive/name/{name}"), &[records(&[enter(bytes)])]);
    }
    add("archive/long/name", &[records(&[enter(&[b'a'; COPY_NAME + 1])])]);
    add("archive/long/data-claim", &[data(&[1, 6, 1, b'f', 0, 0, 0, 0, 9, 8, 255, 255, 255, 255][1..])]);
    add("archive/short/name", &[data(&[4, 9, b'a'])]);
    add("archive/short/record-in-two-frames", &[data(&[4, 2, b'a']), data(b"b")]);
    add("archive/tag/none", &[data(&[0])]);
    add("archive/tag/new", &[data(&[0x7f])]);
    add(
        "archive/range/number-without-end",
        &[data(&[9, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])],
    );
    add("archive/range/length-over-i64", &[records(&[file(u64::MAX)])]);
    add("archive/range/mode", &[data(&[1, 0x80, 0x20, 0, 0, 0])]);
    let late = Attributes { nanoseconds: 1_000_000_000, ..attributes };
    add("archive/range/nanoseconds", &[records(&[Record::Here(Some(late))])]);
    add("archive/target/empty", &[records(&[Record::Symlink { name: b"l", attributes, target: b"" }])]);
    add("archive/target/nul", &[records(&[Record::Symlink { name: b"l", attributes, target: b"a\0b" }])]);
    add("archive/misplaced/leave-at-the-top", &[records(&[Record::Leave])]);
    add("archive/misplaced/data-outside-a-file", &[records(&[Record::Data(b"x")])]);
    add("archive/misplaced/directory-inside-a-file", &[records(&[file(1), enter(b"d")])]);
    add("archive/misplaced/target-inside-a-directory", &[records(&[enter(b"d"), Record::Here(None)])]);
    let deep: Vec<_> = (0..=hospes_protocol::limits::COPY_DEPTH).map(|_| enter(b"d")).collect();
    add("archive/deep/directories", &[records(&deep)]);
    add("archive/size/more", &[records(&[file(3), Record::Data(b"four")])]);
    add("archive/size/less", &[records(&[file(3), Record::Data(b"to"), Record::End])]);
    add(
        "archive/size/hole-overflows",
        &[records(&[file(3), Record::Data(b"x"), Record::Hole(i64::MAX as u64)])],
    );
    add("archive/link/to-nothing", &[records(&[Record::HardLink { name: b"h", to: 0 }])]);
    add("archive/open/file", &[records(&[file(3)])]);
    add("archive/open/directory", &[records(&[enter(b"d")])]);
}

fn handshakes(add: &mut Add<'_>) {
    let (host_key, guest_key) = (host_key(), guest_key());
    let (mut hello, mut answer) = (Vec::new(), Vec::new());
    let host = handshake::Host::start(&host_key, Capabilities(0), &host_entropy(), &mut hello);
    handshake::Guest::answer(
        &hello[8..],
        &guest_key,
        machine(),
        Capabilities(0),
        &guest_entropy(),
        &mut answer,
    )
    .unwrap();
    drop(host);
    let mut flipped = answer.clone();
    *flipped.last_mut().unwrap() ^= 1;
    add("handshake-host/unproved/signature", &[flipped]);
    let mut server: handshake::ServerHello =
        Frame { id: FrameId::SERVER_HELLO, channel: 0, payload: &answer[8..] }.decode().unwrap();
    server.body.guest_key = hospes_protocol::keys::SecretKey::from_bytes(&[9; 32]).public();
    add("handshake-host/unproved/another-key", &[message(FrameId::SERVER_HELLO, 0, &server)]);
    server.body.guest_key = hospes_protocol::keys::PublicKey([0; 32]);
    add("handshake-host/unproved/small-order-key", &[message(FrameId::SERVER_HELLO, 0, &server)]);
    server.body.version = Version(900);
    add("handshake-host/version/not-offered", &[message(FrameId::SERVER_HELLO, 0, &server)]);
    add("handshake-host/malformed/cut", &[framed(FrameId::SERVER_HELLO, 0, &answer[8..answer.len() - 1])]);
    add("handshake-host/trailing/byte", &[framed(FrameId::SERVER_HELLO, 0, &[&answer[8..], &[0]].concat())]);

    let mut client: handshake::ClientHello =
        Frame { id: FrameId::CLIENT_HELLO, channel: 0, payload: &hello[8..] }.decode().unwrap();
    let auth = framed(FrameId::CLIENT_AUTH, 0, &[0; 64]);
    add("handshake-guest/unproved/no-signature", &[message(FrameId::CLIENT_HELLO, 0, &client), auth]);
    client.share = [0; 32];
    add("handshake-guest/share/small-order", &[message(FrameId::CLIENT_HELLO, 0, &client)]);
    client.versions = vec![Version(900)];
    add("handshake-guest/version/from-another-age", &[message(FrameId::CLIENT_HELLO, 0, &client)]);
    client.versions = Vec::new();
    add("handshake-guest/version/none", &[message(FrameId::CLIENT_HELLO, 0, &client)]);
    client.versions = [vec![Version(7); 16], vec![Version::V1]].concat();
    add("handshake-guest/version/behind-the-limit", &[message(FrameId::CLIENT_HELLO, 0, &client)]);
    add("handshake-guest/malformed/empty", &[framed(FrameId::CLIENT_HELLO, 0, &[])]);
}

fn tickets(add: &mut Add<'_>) {
    let (session, secret) = ticket_session();
    let mut issuer = hospes_protocol::ticket::Issuer::new(session, secret);
    let tickets: Vec<Ticket> = (0..5000).map(|_| issuer.issue().0).collect();
    let shown = |ticket: &Ticket| message(FrameId::TICKET, 0, ticket);
    add("ticket/unproved/twice", &[shown(&tickets[0]), shown(&tickets[0])]);
    add("ticket/stale/behind-the-window", &[shown(&tickets[4999]), shown(&tickets[0])]);
    add("ticket/unproved/serial-changed", &[shown(&Ticket { serial: 2, ..tickets[0].clone() })]);
    let session = handshake::SessionId([1; 16]);
    add("ticket/unproved/another-session", &[shown(&Ticket { session, ..tickets[0].clone() })]);
    add("ticket/unproved/zero", &[shown(&Ticket { mac: [0; 32], ..tickets[0].clone() })]);
}
