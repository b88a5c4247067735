//! The conversations that the generator records: what each end does of its own accord, in order.

use hospes_protocol::clipboard::{self, Decline, Feed, Fetch, Offer, Selection, Share, Taken, Want};
use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::copy::archive::{Attributes, Fault, Record as Archived, put_xattr};
use hospes_protocol::copy::{ARCHIVE, CopyId, Done, Position, Problem, Pull, Push, Resume};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::{
    Attach, Exec, ExecId, ExitKind, ExitStatus, Exited, STDERR, STDIN, STDOUT, Signal, Started, Stdin, Usage,
    WindowSize,
};
use hospes_protocol::file::{Entries, Entry, FileReply, FileRequest, READ, Stat, Verb, WRITTEN};
use hospes_protocol::forward::{
    Accept, Address, Connect, Incoming, Listen, Listening, Open, TO_GUEST, TO_HOST,
};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::handshake::{Guest, Host, Ready};
use hospes_protocol::power::{Power, PowerAction, PowerReply};
use hospes_protocol::ticket::{Issuer, Window};
use hospes_protocol::time::{Occasion, Probe, Stamp, Time};
use hospes_protocol::variable::Variable;
use hospes_protocol::version::Capabilities;
use serde::Serialize;

use super::conversation::{Record, Side, split};
use super::{guest_entropy, guest_key, host_entropy, host_key, machine, ticket_session};

/// What will be said, so far.
#[derive(Default)]
struct Script(Vec<Record>);

impl Script {
    fn says<T: Serialize>(&mut self, from: Side, id: FrameId, message: &T) -> &mut Self {
        let mut wire = Vec::new();
        frame::put(id, message, &mut wire);
        self.0.extend(split(from, &wire));
        self
    }

    fn host<T: Serialize>(&mut self, id: FrameId, message: &T) -> &mut Self {
        self.says(Side::Host, id, message)
    }

    fn guest<T: Serialize>(&mut self, id: FrameId, message: &T) -> &mut Self {
        self.says(Side::Guest, id, message)
    }

    fn stream(&mut self, from: Side, id: FrameId, channel: u16, bytes: &[u8]) -> &mut Self {
        let mut wire = Vec::new();
        frame::put_raw(id, channel, bytes, &mut wire);
        self.0.extend(split(from, &wire));
        self
    }

    fn data(&mut self, from: Side, channel: u16, bytes: &[u8]) -> &mut Self {
        self.stream(from, FrameId::DATA, channel, bytes)
    }

    /// The count is the machine's to know.
    fn end(&mut self, from: Side, channel: u16) -> &mut Self {
        self.stream(from, FrameId::END, channel, &[0])
    }

    fn bye(&mut self) -> &mut Self {
        self.stream(Side::Host, FrameId::BYE, 0, &[])
    }

    /// Both hellos; the host's proof follows of itself. `READY` comes with [`ready`](Self::ready).
    fn handshake(&mut self) -> &mut Self {
        let capabilities = Capabilities((1 << 7) - 1);
        let (mut hello, mut answer) = (Vec::new(), Vec::new());
        Host::start(&host_key(), capabilities, &host_entropy(), &mut hello);
        Guest::answer(&hello[8..], &guest_key(), machine(), capabilities, &guest_entropy(), &mut answer)
            .unwrap();
        self.0.extend(split(Side::Host, &hello));
        self.0.extend(split(Side::Guest, &answer));
        self
    }

    fn ready(&mut self) -> &mut Self {
        self.guest(FrameId::READY, &Ready { release: env!("CARGO_PKG_VERSION").into(), first_use: false })
    }

    fn ticket(&mut self) -> &mut Self {
        let (session, secret) = ticket_session();
        let (ticket, _) = Issuer::new(session, secret).issue();
        self.host(FrameId::TICKET, &ticket)
    }

    fn opened(&mut self) -> &mut Self {
        let (session, secret) = ticket_session();
        let (ticket, _) = Issuer::new(session, secret.clone()).issue();
        let opened = Window::new(session, secret).take(&ticket).unwrap();
        self.guest(FrameId::OPENED, &opened)
    }
}

/// The scripts by file name.
pub(crate) fn all() -> Vec<(&'static str, Vec<Record>)> {
    vec![
        ("handshake-exec", exec_after_a_handshake()),
        ("ticket-exec-refused", refused_exec()),
        ("ticket-exec-terminal", terminal()),
        ("ticket-exec-credit", credit()),
        ("ticket-attach", attach()),
        ("ticket-file-write", file_write()),
        ("ticket-file-read", file_read()),
        ("ticket-file-list", file_list()),
        ("ticket-copy-push", copy_push()),
        ("ticket-copy-pull", copy_pull()),
        ("ticket-copy-resume", copy_resume()),
        ("ticket-forward-half-close", forward_half_close()),
        ("ticket-forward-listen", forward_listen()),
        ("ticket-forward-accept", forward_accept()),
        ("ticket-clipboard", clipboard_channel()),
        ("ticket-clipboard-fetch", clipboard_fetch()),
        ("ticket-clipboard-feed", clipboard_feed()),
        ("ticket-time", time()),
        ("handshake-control", control_session()),
        ("ticket-power", lone_request()),
    ]
}

fn exited(kind: ExitKind, value: u8) -> Exited {
    let usage = Usage { user_us: 900, system_us: 1200, elapsed_us: 350_000, max_rss_kib: 2048 };
    Exited { status: ExitStatus { kind, value }, timed_out: false, usage }
}

fn started() -> Started {
    Started { id: ExecId(1), pid: 812, lost: [0, 0] }
}

fn command(words: &[&str]) -> Exec {
    Exec { argv: words.iter().map(|word| word.as_bytes().to_vec()).collect(), ..Exec::default() }
}

fn exec_after_a_handshake() -> Vec<Record> {
    let mut script = Script::default();
    let exec = Exec { stdin: Stdin::STREAM, ..command(&["sh", "-c", "cat; echo oops >&2; exit 3"]) };
    script.handshake().host(FrameId::EXEC, &exec);
    script.data(Side::Host, STDIN, b"hello\n").end(Side::Host, STDIN);
    script.ready().guest(FrameId::EXEC_STARTED, &started());
    script.data(Side::Guest, STDOUT, b"hello\n").data(Side::Guest, STDERR, b"oops\n");
    script.guest(FrameId::EXEC_EXITED, &exited(ExitKind::CODE, 3)).bye();
    script.0
}

fn refused_exec() -> Vec<Record> {
    let mut script = Script::default();
    let error = WireError::new(ErrorKind::NOT_FOUND, "No program named nosuch").hint("Check the PATH");
    script.ticket().host(FrameId::EXEC, &command(&["nosuch"])).opened().guest(FrameId::FAILED, &error);
    script.0
}

fn terminal() -> Vec<Record> {
    let mut script = Script::default();
    let size = WindowSize { cols: 80, rows: 24, width: 0, height: 0 };
    let terminal = Some(hospes_protocol::exec::Terminal { term: "xterm".into(), size });
    let exec = Exec { stdin: Stdin::STREAM, terminal, login: true, ..Exec::default() };
    script.ticket().host(FrameId::EXEC, &exec).opened().guest(FrameId::EXEC_STARTED, &started());
    script.data(Side::Guest, STDOUT, b"dev$ ").data(Side::Host, STDIN, b"sleep 9\r");
    script.host(FrameId::EXEC_RESIZE, &WindowSize { cols: 132, ..size });
    script.host(FrameId::EXEC_SIGNAL, &Signal(1));
    script.guest(FrameId::EXEC_EXITED, &exited(ExitKind::SIGNAL, 1)).bye();
    script.0
}

/// More output than the first window: the host grants more of itself. And a stdin that nobody wants.
fn credit() -> Vec<Record> {
    let mut script = Script::default();
    let exec = Exec { stdin: Stdin::STREAM, ..command(&["head", "-c", "270000", "/dev/zero"]) };
    script.ticket().host(FrameId::EXEC, &exec).opened().guest(FrameId::EXEC_STARTED, &started());
    script.data(Side::Host, STDIN, b"to nobody").stream(Side::Guest, FrameId::UNWANTED, STDIN, &[]);
    script.data(Side::Guest, STDOUT, &[0; 131_072]).data(Side::Guest, STDOUT, &[0; 131_072]);
    script.data(Side::Guest, STDOUT, &[0; 7_856]);
    script.stream(Side::Host, FrameId::UNWANTED, STDERR, &[]);
    script.guest(FrameId::EXEC_EXITED, &exited(ExitKind::CODE, 0)).bye();
    script.0
}

fn attach() -> Vec<Record> {
    let mut script = Script::default();
    script.ticket().host(FrameId::EXEC_ATTACH, &Attach { user: "dev".into(), id: ExecId(1) }).opened();
    script.guest(FrameId::EXEC_STARTED, &Started { lost: [70_000, 0], ..started() });
    script.data(Side::Guest, STDOUT, b"the last of it\n");
    script.stream(Side::Host, FrameId::EXEC_DETACH, 0, &[]);
    script.guest(FrameId::EXEC_EXITED, &exited(ExitKind::CODE, 0)).bye();
    script.0
}

fn file(verb: Verb) -> FileRequest {
    FileRequest { user: "dev".into(), verb }
}

fn file_write() -> Vec<Record> {
    let mut script = Script::default();
    let verb = Verb::Write { path: b"notes.txt".to_vec(), append: false, replace: true, mode: Some(0o640) };
    script.ticket().host(FrameId::FILE, &file(verb));
    script.data(Side::Host, WRITTEN, b"one\n").data(Side::Host, WRITTEN, b"two\n").end(Side::Host, WRITTEN);
    script.opened().guest(FrameId::FILE_REPLY, &FileReply::Count(8)).bye();
    script.0
}

fn file_read() -> Vec<Record> {
    let mut script = Script::default();
    let verb = Verb::Read { path: b"notes.txt".to_vec(), offset: 4, len: None };
    script.ticket().host(FrameId::FILE, &file(verb)).opened();
    script.data(Side::Guest, READ, b"two\n").end(Side::Guest, READ);
    script.guest(FrameId::FILE_REPLY, &FileReply::Count(4)).bye();
    script.0
}

fn file_list() -> Vec<Record> {
    let mut script = Script::default();
    let entries = |names: &[&[u8]]| {
        Entries(names.iter().map(|name| Entry { name: name.to_vec(), stat: Stat::default() }).collect())
    };
    script.ticket().host(FrameId::FILE, &file(Verb::List { path: b".".to_vec() })).opened();
    script
        .guest(FrameId::FILE_ENTRIES, &entries(&[b"a", b"\xff"]))
        .guest(FrameId::FILE_ENTRIES, &entries(&[b"c"]));
    script.guest(FrameId::FILE_REPLY, &FileReply::Count(3)).bye();
    script.0
}

/// An archive with a record of each kind.
fn archive(records: &[Archived<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    bytes
}

const COPY: CopyId = CopyId(*b"0123456789abcdef");

fn done() -> Done {
    Done { files: 2, directories: 1, links: 2, bytes: 16, problems: 1 }
}

fn copy_push() -> Vec<Record> {
    let mut script = Script::default();
    let target = b"/home/dev/in".to_vec();
    let push = Push { user: "dev".into(), id: COPY, target, into: true, special_bits: false, strict: false };
    let mut xattrs = Vec::new();
    put_xattr(b"user.origin", b"\x00\xff", &mut xattrs);
    let plain = Attributes { mode: 0o644, seconds: 1_789_000_000, nanoseconds: 999_999_999, xattrs: &[] };
    let old = Attributes { mode: 0o4755, seconds: -1, nanoseconds: 0, xattrs: &xattrs };
    let fault = Fault { kind: ErrorKind::PERMISSION, message: "Permission denied" };
    let first = archive(&[
        Archived::Total { entries: 7, bytes: 16 },
        Archived::Here(None),
        Archived::Enter { name: b"tree", attributes: Some(old) },
        Archived::File { name: b"\xff.bin", attributes: plain, size: 16, linked: true, sparse: false },
        Archived::Data(b"8 bytes."),
        Archived::Hole(8),
        Archived::End,
    ]);
    let second = archive(&[
        Archived::HardLink { name: b"again", to: 0 },
        Archived::Symlink { name: b"link", attributes: plain, target: b"../elsewhere" },
        Archived::Fifo { name: b"pipe", attributes: plain },
        Archived::File { name: b"broken", attributes: plain, size: 1 << 40, linked: false, sparse: false },
        Archived::Broken(fault),
        Archived::Skipped { name: b"socket", fault },
        Archived::Enter { name: b"bare", attributes: None },
        Archived::Leave,
        Archived::Leave,
        Archived::Leave,
    ]);
    script.ticket().host(FrameId::COPY_PUSH, &push);
    script.data(Side::Host, ARCHIVE, &first).data(Side::Host, ARCHIVE, &second).end(Side::Host, ARCHIVE);
    let error = WireError::new(ErrorKind::PERMISSION, "Permission denied");
    script.opened().guest(FrameId::COPY_PROBLEM, &Problem { path: b"tree/broken".to_vec(), error });
    script.guest(FrameId::COPY_DONE, &done()).bye();
    script.0
}

fn copy_pull() -> Vec<Record> {
    let mut script = Script::default();
    let pull = Pull {
        user: "dev".into(),
        id: COPY,
        sources: vec![b"notes".to_vec()],
        exclude: Vec::new(),
        count: false,
    };
    let attributes = Attributes { mode: 0o600, ..Attributes::default() };
    let file = Archived::File { name: b"notes", attributes, size: 4, linked: false, sparse: false };
    script.ticket().host(FrameId::COPY_PULL, &pull).opened();
    script.data(Side::Guest, ARCHIVE, &archive(&[file, Archived::Data(b"one\n"), Archived::End]));
    script.end(Side::Guest, ARCHIVE).bye();
    script.0
}

/// A push that was cut after its first frame goes on.
fn copy_resume() -> Vec<Record> {
    let mut script = Script::default();
    let attributes = Attributes { mode: 0o600, ..Attributes::default() };
    let file = Archived::File { name: b"second", attributes, size: 0, linked: false, sparse: false };
    script.ticket().host(FrameId::COPY_RESUME, &Resume { user: "dev".into(), id: COPY, taken: 70 });
    script.opened().guest(FrameId::COPY_POSITION, &Position { taken: 70 });
    script.data(Side::Host, ARCHIVE, &archive(&[file, Archived::End])).end(Side::Host, ARCHIVE);
    script.guest(FrameId::COPY_DONE, &done()).bye();
    script.0
}

fn forward_half_close() -> Vec<Record> {
    let mut script = Script::default();
    let to = Address::Tcp { host: "localhost".into(), port: 80 };
    script.ticket().host(FrameId::FORWARD_CONNECT, &Connect { user: "dev".into(), to });
    script.data(Side::Host, TO_GUEST, b"GET / HTTP/1.0\r\n\r\n").opened();
    script.guest(FrameId::FORWARD_OPEN, &Open { peer: "127.0.0.1:80".into() });
    script.end(Side::Host, TO_GUEST).data(Side::Guest, TO_HOST, b"HTTP/1.0 200 OK\r\n\r\n");
    script.end(Side::Guest, TO_HOST).bye();
    script.0
}

fn forward_listen() -> Vec<Record> {
    let mut script = Script::default();
    let on = |port| Address::Tcp { host: "127.0.0.1".into(), port };
    script.ticket().host(FrameId::FORWARD_LISTEN, &Listen { user: "dev".into(), on: on(0) }).opened();
    script.guest(FrameId::FORWARD_LISTENING, &Listening { on: on(40_001) });
    let incoming = Incoming { call: [7; 16], from: "127.0.0.1:50000".into() };
    script.guest(FrameId::FORWARD_INCOMING, &incoming).bye();
    script.0
}

fn forward_accept() -> Vec<Record> {
    let mut script = Script::default();
    script.ticket().host(FrameId::FORWARD_ACCEPT, &Accept { user: "dev".into(), call: [7; 16] }).opened();
    script.guest(FrameId::FORWARD_OPEN, &Open { peer: "127.0.0.1:50000".into() });
    script.data(Side::Guest, TO_HOST, b"220 hello\r\n");
    let error = WireError::new(ErrorKind::UNREACHABLE, "Connection reset by peer");
    script.host(FrameId::FAILED, &error);
    script.0
}

fn clipboard_channel() -> Vec<Record> {
    let mut script = Script::default();
    let selection = Selection::CLIPBOARD;
    let offer = |serial, kind: &str| Offer { serial, selection, types: vec![kind.to_owned()] };
    script.ticket().host(FrameId::CLIPBOARD, &Share { to_guest: true, to_host: true }).opened();
    script.host(FrameId::CLIPBOARD_OFFER, &offer(1, "text/plain"));
    let share = Share { to_guest: true, to_host: true };
    let (user, back_end) = ("dev".into(), "x11".into());
    let ready = clipboard::Ready { user, back_end, selections: vec![selection], share };
    script.guest(FrameId::CLIPBOARD_READY, &ready);
    script.guest(FrameId::CLIPBOARD_OFFER, &offer(4, "image/png"));
    let want = Want { call: [7; 16], selection, serial: 1, kind: "text/plain".into() };
    script.guest(FrameId::CLIPBOARD_WANT, &want);
    let error = WireError::new(ErrorKind::NOT_FOUND, "Something else was copied");
    script.host(FrameId::CLIPBOARD_DECLINE, &Decline { call: [7; 16], error }).bye();
    script.0
}

fn clipboard_fetch() -> Vec<Record> {
    let mut script = Script::default();
    let fetch = Fetch { selection: Selection::CLIPBOARD, serial: 4, kind: "image/png".into() };
    script.ticket().host(FrameId::CLIPBOARD_FETCH, &fetch).opened();
    script.data(Side::Guest, clipboard::TO_HOST, b"\x89PNG").end(Side::Guest, clipboard::TO_HOST).bye();
    script.0
}

fn clipboard_feed() -> Vec<Record> {
    let mut script = Script::default();
    script.ticket().host(FrameId::CLIPBOARD_FEED, &Feed { call: [7; 16] });
    script.data(Side::Host, clipboard::TO_GUEST, b"hello").end(Side::Host, clipboard::TO_GUEST).opened();
    script.guest(FrameId::CLIPBOARD_TAKEN, &Taken { bytes: 5 });
    script.0
}

fn time() -> Vec<Record> {
    let mut script = Script::default();
    script.ticket().host(FrameId::TIME, &Time { occasion: Occasion::OPENED }).opened();
    script.guest(FrameId::TIME_PROBE, &Probe { serial: 1 });
    script.host(
        FrameId::TIME_STAMP,
        &Stamp { serial: 1, received_ns: 1_789_000_000_000_000_000, sent_ns: 1_789_000_000_000_000_900 },
    );
    script.guest(FrameId::TIME_REPORT, &super::samples::report());
    script.host(FrameId::TIME, &Time { occasion: Occasion::HOST_WOKE }).bye();
    script.0
}

fn control_session() -> Vec<Record> {
    let mut script = Script::default();
    let request = |number, ask| Request { number, ask };
    let reply = |number, answer| Reply { number, answer };
    let variable = |secret| Variable { name: "build.id".into(), value: b"42".to_vec(), secret };
    script.handshake().stream(Side::Host, FrameId::CONTROL, 0, &[]).ready();
    script.host(FrameId::REQUEST, &request(1, Ask::Info)).host(FrameId::REQUEST, &request(2, Ask::Ping));
    script.guest(FrameId::REPLY, &reply(2, Ok(Answer::Pong)));
    script.guest(FrameId::REPLY, &reply(1, Ok(Answer::Info(Box::new(super::samples::info())))));
    script
        .host(FrameId::REQUEST, &request(3, Ask::Subscribe))
        .guest(FrameId::REPLY, &reply(3, Ok(Answer::Done)));
    script.host(FrameId::REQUEST, &request(4, Ask::VariableSet(variable(true))));
    script.guest(FrameId::EVENT, &Event::Variable("build.id".into()));
    script.guest(FrameId::REPLY, &reply(4, Ok(Answer::Done)));
    let secret =
        WireError::new(ErrorKind::FORBIDDEN, "build.id is a secret, for the guest's root to read once");
    script.host(FrameId::REQUEST, &request(5, Ask::VariableGet { name: "build.id".into() }));
    script.guest(FrameId::REPLY, &reply(5, Err(secret)));
    script.guest(FrameId::EVENT, &Event::Stopping("poweroff".into())).bye();
    script.0
}

fn lone_request() -> Vec<Record> {
    let mut script = Script::default();
    let power = Power { action: PowerAction::POWEROFF, force: false, script_timeout_ms: None };
    script.ticket().host(FrameId::REQUEST, &Request { number: 1, ask: Ask::Power(power) }).opened();
    let reply = PowerReply { by: "logind".into(), ..PowerReply::default() };
    script.guest(FrameId::REPLY, &Reply { number: 1, answer: Ok(Answer::Power(reply)) }).bye();
    script.0
}
