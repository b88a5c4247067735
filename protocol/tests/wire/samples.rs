//! One valid frame, or several, of every id: what the generator writes as `valid/*.bin`.

use hospes_protocol::clipboard::files::{self, NodeKind, Root, Shared};
use hospes_protocol::clipboard::{self, Decline, Feed, Fetch, Offer, Selection, Set, Share, Taken};
use hospes_protocol::codec;
use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::copy::{CopyId, Done, Position, Problem, Pull, Push, Resume};
use hospes_protocol::display::{self, Display, Rule, Scale, Size, Want};
use hospes_protocol::error::{ErrorKind, Unknown, WireError};
use hospes_protocol::exec::{
    Attach, Exec, ExecId, ExitKind, ExitStatus, Exited, Signal, Started, Stdin, Terminal, Usage, WindowSize,
};
use hospes_protocol::file::{Entries, Entry, FileReply, FileRequest, Stat, Verb};
use hospes_protocol::forward::{Accept, Address, Connect, Incoming, Listen, Listening, Open, Refuse};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::freeze::{
    FileSystem, Freeze, FreezeReply, FsState, Thaw, ThawCause, ThawReply, Trim, TrimReply, Trimmed,
};
use hospes_protocol::handshake::{Announce, Guest, Host, Ready};
use hospes_protocol::info::{Disk, Info, Interface, User};
use hospes_protocol::power::{Inhibitor, Power, PowerAction, PowerReply, ScriptEnd, ScriptReport};
use hospes_protocol::process::{Kill, Killed, Process, Processes, Ps, Target};
use hospes_protocol::ticket::Issuer;
use hospes_protocol::time::{Deed, Keeper, Occasion, Probe, Report, Setting, Source, Stamp, Time};
use hospes_protocol::variable::Variable;
use hospes_protocol::version::Capabilities;
use serde::Serialize;

/// Frames by file name.
pub(crate) struct Samples(pub(crate) Vec<(String, Vec<u8>)>);

impl Samples {
    fn message<T: Serialize>(&mut self, name: &str, id: FrameId, message: &T) {
        let mut wire = Vec::new();
        frame::put(id, message, &mut wire);
        self.0.push((name.to_owned(), wire));
    }

    fn stream<T: Serialize>(&mut self, name: &str, id: FrameId, channel: u16, message: &T) {
        let mut wire = Vec::new();
        frame::put_on(id, channel, message, &mut wire);
        self.0.push((name.to_owned(), wire));
    }

    fn raw(&mut self, name: &str, id: FrameId, channel: u16, bytes: &[u8]) {
        let mut wire = Vec::new();
        frame::put_raw(id, channel, bytes, &mut wire);
        self.0.push((name.to_owned(), wire));
    }
}

/// All of them.
pub(crate) fn all() -> Samples {
    let mut samples = Samples(Vec::new());
    connection(&mut samples);
    streams(&mut samples);
    commands(&mut samples);
    processes(&mut samples);
    requests(&mut samples);
    answers(&mut samples);
    files(&mut samples);
    copies(&mut samples);
    forwards(&mut samples);
    clipboards(&mut samples);
    displays(&mut samples);
    times(&mut samples);
    samples
}

/// A guest's description with every field in use.
pub(crate) fn info() -> Info {
    Info {
        release: "0.1.0".into(),
        hostname: "dev".into(),
        os: "Debian GNU/Linux 13 (trixie)".into(),
        os_id: "debian".into(),
        os_version: "13".into(),
        kernel: "6.12.48+deb13-arm64".into(),
        architecture: "aarch64".into(),
        boot_id: "6d1c1f8e-2f1a-4a53-9a3d-5f9d1b0c7a11".into(),
        uptime_ms: 86_400_123,
        cpus: 4,
        memory_kib: 4_022_272,
        available_kib: 3_145_728,
        load: [12, 305, 70_000],
        interfaces: vec![Interface {
            name: "enp0s1".into(),
            mac: "52:54:00:12:34:56".into(),
            up: true,
            default_route: true,
            addresses: vec!["192.168.64.5/24".into(), "fe80::5054:ff:fe12:3456/64".into()],
        }],
        disks: vec![Disk {
            mount_point: "/".into(),
            source: "/dev/vda".into(),
            kind: "ext4".into(),
            total: 68_719_476_736,
            free: 51_539_607_552,
        }],
        users: vec![User { name: "dev".into(), uid: 1000, place: "seat0".into() }],
    }
}

/// A command with every field in use.
pub(crate) fn exec() -> Exec {
    Exec {
        user: "dev".into(),
        argv: vec![b"make".to_vec(), b"test".to_vec(), b"\xff not UTF-8".to_vec()],
        env: vec![(b"LANG".to_vec(), b"C.UTF-8".to_vec()), (b"EMPTY".to_vec(), Vec::new())],
        cwd: Some(b"src/project".to_vec()),
        login: true,
        stdin: Stdin::STREAM,
        merge_outputs: true,
        timeout_ms: Some(60_000),
        keep_output: Some(4096),
        ..Exec::default()
    }
}

fn connection(samples: &mut Samples) {
    let (mut hello, mut answer, mut auth) = (Vec::new(), Vec::new(), Vec::new());
    let (host_key, guest_key) = (super::host_key(), super::guest_key());
    let capabilities = Capabilities::EXEC.with(Capabilities::COPY).with(Capabilities(1 << 40));
    let host = Host::start(&host_key, capabilities, &super::host_entropy(), &mut hello);
    let guest = Guest::answer(
        &hello[8..],
        &guest_key,
        super::machine(),
        capabilities,
        &super::guest_entropy(),
        &mut answer,
    );
    let session = host.finish(&answer[8..], &mut auth).unwrap();
    guest.unwrap().finish(&auth[8..]).unwrap();
    samples.0.extend([
        ("client-hello".into(), hello),
        ("server-hello".into(), answer),
        ("client-auth".into(), auth),
    ]);
    samples.message("ready", FrameId::READY, &Ready { release: "0.1.0".into(), first_use: true });
    let (ticket, opened) = Issuer::new(session.id, session.secret).issue();
    samples.message("ticket", FrameId::TICKET, &ticket);
    samples.message("opened", FrameId::OPENED, &opened);
    let error = WireError::new(ErrorKind::NO_USER, "No user dev").hint("List them with `hospes info`");
    samples.message("failed", FrameId::FAILED, &error);
    let new_kind = WireError::new(ErrorKind(60_000), "A kind that this release does not know");
    samples.message("failed-unknown-kind", FrameId::FAILED, &new_kind);
    samples.message("unknown", FrameId::UNKNOWN, &Unknown { id: 0x7777 });
    samples.raw("bye", FrameId::BYE, 0, &[]);
    let announce = Announce { hostname: "dev".into(), guest_key: guest_key.public() };
    samples.message("announce", FrameId::ANNOUNCE, &announce);
    samples.raw("control", FrameId::CONTROL, 0, &[]);
}

fn streams(samples: &mut Samples) {
    samples.raw("data", FrameId::DATA, 1, b"hello\n");
    samples.raw("data-empty", FrameId::DATA, 0, &[]);
    // Each width that a variable-length integer has.
    for (name, bytes) in [("u8", 250u32), ("u16", 65_535), ("u32", 262_144)] {
        samples.stream(&format!("credit-{name}"), FrameId::CREDIT, 2, &bytes);
    }
    for (name, total) in
        [("u8", 0u64), ("u8-most", 250), ("u16", 251), ("u32", 1 << 31), ("u64", 1 << 40), ("most", u64::MAX)]
    {
        samples.stream(&format!("end-{name}"), FrameId::END, 1, &total);
    }
    samples.raw("unwanted", FrameId::UNWANTED, 0, &[]);
}

fn commands(samples: &mut Samples) {
    samples.message("exec", FrameId::EXEC, &exec());
    samples.message("exec-least", FrameId::EXEC, &Exec::default());
    let size = WindowSize { cols: 213, rows: 60, width: 1704, height: 960 };
    let terminal = Some(Terminal { term: "xterm-256color".into(), size });
    samples.message("exec-terminal", FrameId::EXEC, &Exec { terminal, detach: true, ..Exec::default() });
    samples.message(
        "exec-started",
        FrameId::EXEC_STARTED,
        &Started { id: ExecId(7), pid: 4_194_303, lost: [0, 1 << 33] },
    );
    samples.message("exec-signal", FrameId::EXEC_SIGNAL, &Signal(15));
    samples.message("exec-resize", FrameId::EXEC_RESIZE, &size);
    let usage = Usage { user_us: 1_500_000, system_us: 250, elapsed_us: 5_000_000_000, max_rss_kib: 70_000 };
    for (name, kind, value, timed_out) in [
        ("code", ExitKind::CODE, 255, false),
        ("signal", ExitKind::SIGNAL, 9, true),
        ("unknown", ExitKind(9), 0, false),
    ] {
        let exited = Exited { status: ExitStatus { kind, value }, timed_out, usage };
        samples.message(&format!("exec-exited-{name}"), FrameId::EXEC_EXITED, &exited);
    }
    samples.message("exec-attach", FrameId::EXEC_ATTACH, &Attach { user: "dev".into(), id: ExecId(300) });
    samples.raw("exec-detach", FrameId::EXEC_DETACH, 0, &[]);
}

fn processes(samples: &mut Samples) {
    samples.message("ps", FrameId::PS, &Ps { user: String::new(), all: true });
    let process = Process {
        pid: 4242,
        ppid: 1,
        uid: 1000,
        user: "dev".into(),
        id: Some(ExecId(7)),
        state: b'S',
        started: 1_789_000_000,
        cpu_ms: 120,
        rss_kib: 8192,
        argv: vec![b"sleep".to_vec(), b"60".to_vec()],
    };
    samples.message("processes", FrameId::PROCESSES, &Processes { list: vec![process], omitted: 3 });
    let kill = |target| Kill { user: "dev".into(), target, signal: 9 };
    samples.message("kill-pid", FrameId::KILL, &kill(Target::Pid(4242)));
    samples.message("kill-exec", FrameId::KILL, &kill(Target::Exec(ExecId(7))));
    samples.message("killed", FrameId::KILLED, &Killed { count: 2 });
}

fn variable(secret: bool) -> Variable {
    Variable { name: "build.id".into(), value: b"\x00\xff 42".to_vec(), secret }
}

fn requests(samples: &mut Samples) {
    let name = || "build.id".to_owned();
    let power = |action, script_timeout_ms: Option<u64>| {
        Ask::Power(Power { action, force: script_timeout_ms.is_some(), script_timeout_ms })
    };
    for (number, (word, ask)) in [
        ("ping", Ask::Ping),
        ("info", Ask::Info),
        ("subscribe", Ask::Subscribe),
        ("variable-list", Ask::VariableList),
        ("variable-get", Ask::VariableGet { name: name() }),
        ("variable-set", Ask::VariableSet(variable(false))),
        ("variable-set-secret", Ask::VariableSet(variable(true))),
        ("variable-remove", Ask::VariableRemove { name: name() }),
        ("power-off", power(PowerAction::POWEROFF, None)),
        ("power-suspend", power(PowerAction::SUSPEND, Some(90_000))),
        ("freeze", Ask::Freeze(Freeze { timeout_ms: 10_000, script_timeout_ms: Some(5_000) })),
        ("thaw", Ask::Thaw(Thaw { serial: Some(1 << 33) })),
        ("trim", Ask::Trim(Trim { minimum: 1 << 20 })),
    ]
    .into_iter()
    .enumerate()
    {
        // The number's width grows too.
        let number = 40u64.pow(u32::try_from(number).unwrap());
        samples.message(&format!("request-{word}"), FrameId::REQUEST, &Request { number, ask });
    }
}

fn freezes(scripts: Vec<ScriptReport>) -> [(&'static str, Result<Answer, WireError>); 4] {
    let file_system = |mount: &[u8], kind: &str, state, error: &str| FileSystem {
        mount: mount.to_vec(),
        kind: kind.into(),
        state,
        error: error.into(),
    };
    let root = || file_system(b"/", "ext4", FsState::FROZEN, "");
    let frozen = FreezeReply {
        serial: 7,
        took_us: 18_400,
        file_systems: vec![root(), file_system(b"/mnt/\xe4", "nfs4", FsState::NETWORK, "")],
        scripts: scripts.clone(),
        refused: None,
    };
    let busy = WireError::new(ErrorKind::BUSY, "/srv is frozen by somebody else").hint("fsfreeze -u /srv");
    let failed = FreezeReply {
        file_systems: vec![
            file_system(b"/srv", "xfs", FsState::FAILED, "Device or resource busy"),
            file_system(b"/", "ext4", FsState::UNDONE, ""),
        ],
        refused: Some(busy),
        ..FreezeReply::default()
    };
    let thawed = ThawReply {
        serial: 7,
        cause: ThawCause::DEADLINE,
        held_us: 9_981_600,
        file_systems: vec![root()],
        scripts,
    };
    let none = WireError::new(ErrorKind::UNSUPPORTED, "Its disk cannot be trimmed");
    let trimmed = |mount: &[u8], bytes| Trimmed { mount: mount.to_vec(), kind: "ext4".into(), bytes };
    let trim = TrimReply { file_systems: vec![trimmed(b"/", Ok(3 << 30)), trimmed(b"/srv", Err(none))] };
    [
        ("freeze", Ok(Answer::Freeze(frozen))),
        ("freeze-refused", Ok(Answer::Freeze(failed))),
        ("thaw", Ok(Answer::Thaw(thawed))),
        ("trim", Ok(Answer::Trim(trim))),
    ]
}

fn answers(samples: &mut Samples) {
    let script = |name: &str, end, status, output: &[u8]| ScriptReport {
        name: name.into(),
        end,
        status,
        output: output.to_vec(),
    };
    let scripts = vec![
        script("10-flush", ScriptEnd::ENDED, 0, b"flushed\n"),
        script("20-slow", ScriptEnd::TIMED_OUT, 0, b""),
        script("30-open", ScriptEnd::SKIPPED, 0, b"Anybody may write to it"),
    ];
    let frozen = freezes(scripts.clone());
    let inhibitors = vec![Inhibitor { who: "apt".into(), why: "Upgrade".into() }];
    let refused = WireError::new(ErrorKind::BUSY, "Another request is under way").hint("Wait for it");
    let wait = WireError::new(ErrorKind::INHIBITED, "apt asks to wait").hint("Ask again, or use --force");
    let going = PowerReply { scripts: scripts.clone(), by: "logind".into(), ..PowerReply::default() };
    let staying = PowerReply { scripts, inhibitors, refused: Some(wait), by: String::new() };
    for (word, answer) in [
        ("pong", Ok(Answer::Pong)),
        ("info", Ok(Answer::Info(Box::new(info())))),
        ("done", Ok(Answer::Done)),
        ("variables", Ok(Answer::Variables(vec![variable(false), variable(true)]))),
        ("variable", Ok(Answer::Variable(variable(false)))),
        ("power", Ok(Answer::Power(going))),
        ("power-refused", Ok(Answer::Power(staying))),
        ("refused", Err(refused)),
    ] {
        samples.message(&format!("reply-{word}"), FrameId::REPLY, &Reply { number: 9, answer });
    }
    for (word, answer) in frozen {
        samples.message(&format!("reply-{word}"), FrameId::REPLY, &Reply { number: 9, answer });
    }
    samples.message("event-info", FrameId::EVENT, &Event::Info(Box::new(info())));
    samples.message("event-stopping", FrameId::EVENT, &Event::Stopping("reboot".into()));
    samples.message("event-variable", FrameId::EVENT, &Event::Variable("guest.ready".into()));
    samples.message("event-resumed", FrameId::EVENT, &Event::Resumed);
    samples.message("event-desktop", FrameId::EVENT, &Event::Desktop(Some("dev".into())));
    samples.message("event-desktop-none", FrameId::EVENT, &Event::Desktop(None));
}

fn stat() -> Stat {
    Stat {
        mode: 0o120_777,
        size: 1 << 34,
        mtime_s: -1,
        mtime_ns: 999_999_999,
        uid: 1000,
        gid: 1000,
        user: "dev".into(),
        group: "dev".into(),
        links: 1,
        target: b"../\xe4".to_vec(),
    }
}

fn files(samples: &mut Samples) {
    let path = || b"notes/\xfc.txt".to_vec();
    for (word, verb) in [
        ("stat", Verb::Stat { path: path(), follow: true }),
        ("list", Verb::List { path: path() }),
        ("mkdir", Verb::Mkdir { path: path(), parents: true, mode: Some(0o755) }),
        ("remove", Verb::Remove { path: path(), recursive: true, force: true }),
        ("rename", Verb::Rename { from: path(), to: b"/tmp/x".to_vec(), replace: true }),
        (
            "temp",
            Verb::Temp {
                directory: Some(b"/var/tmp".to_vec()),
                prefix: b"a".to_vec(),
                suffix: b".b".to_vec(),
                make_directory: true,
            },
        ),
        ("read", Verb::Read { path: path(), offset: 1 << 33, len: Some(10) }),
        ("write", Verb::Write { path: path(), append: true, replace: false, mode: Some(0o600) }),
    ] {
        samples.message(&format!("file-{word}"), FrameId::FILE, &FileRequest { user: "dev".into(), verb });
    }
    for (word, reply) in [
        ("done", FileReply::Done),
        ("stat", FileReply::Stat(stat())),
        ("path", FileReply::Path(b"/tmp/a1b2".to_vec())),
        ("count", FileReply::Count(1 << 33)),
    ] {
        samples.message(&format!("file-reply-{word}"), FrameId::FILE_REPLY, &reply);
    }
    let entries = Entries(vec![Entry { name: b"a\nb".to_vec(), stat: stat() }]);
    samples.message("file-entries", FrameId::FILE_ENTRIES, &entries);
}

fn copies(samples: &mut Samples) {
    let (user, id) = (|| "dev".to_owned(), CopyId(*b"0123456789abcdef"));
    let push = Push {
        user: user(),
        id,
        target: b"/srv/\xff".to_vec(),
        into: true,
        special_bits: false,
        strict: true,
    };
    samples.message("copy-push", FrameId::COPY_PUSH, &push);
    let (sources, exclude) = (vec![b"src".to_vec(), b"notes".to_vec()], vec![b"*.o".to_vec()]);
    samples.message(
        "copy-pull",
        FrameId::COPY_PULL,
        &Pull { user: user(), id, sources, exclude, count: true },
    );
    samples.message("copy-resume", FrameId::COPY_RESUME, &Resume { user: user(), id, taken: 1 << 34 });
    samples.message("copy-position", FrameId::COPY_POSITION, &Position { taken: 300 });
    let error = WireError::new(ErrorKind::NO_SPACE, "No space left on device");
    samples.message("copy-problem", FrameId::COPY_PROBLEM, &Problem { path: b"a/b".to_vec(), error });
    let done = Done { files: 3, directories: 2, links: 1, bytes: 1 << 33, problems: 1 };
    samples.message("copy-done", FrameId::COPY_DONE, &done);
}

fn times(samples: &mut Samples) {
    samples.message("time", FrameId::TIME, &Time { occasion: Occasion::RESUMED });
    samples.message("time-unknown", FrameId::TIME, &Time { occasion: Occasion(200) });
    samples.message("time-probe", FrameId::TIME_PROBE, &Probe { serial: 1 << 40 });
    let stamp =
        Stamp { serial: 3, received_ns: 1_789_000_000_123_456_789, sent_ns: 1_789_000_000_123_460_000 };
    samples.message("time-stamp", FrameId::TIME_STAMP, &stamp);
    samples.message("time-report", FrameId::TIME_REPORT, &report());
    let quiet =
        Report { deed: Deed::NOTHING, moved_ns: 0, keeper: Keeper::NONE, by: String::new(), ..report() };
    samples.message("time-report-nothing", FrameId::TIME_REPORT, &quiet);
}

/// A guest's word on its clock with every field in use.
pub(crate) fn report() -> Report {
    Report {
        occasion: Occasion::RESUMED,
        offset_ns: -5_000_000_123,
        error_ns: 250_000,
        round_trip_ns: 500_000,
        source: Source::VSOCK,
        keeper: Keeper::CHRONY,
        by: "chrony.service".into(),
        fed: true,
        setting: Setting::FULL,
        deed: Deed::STEPPED,
        moved_ns: -5_000_000_123,
        left_ns: 1200,
    }
}

fn clipboards(samples: &mut Samples) {
    let (selection, call) = (Selection::CLIPBOARD, *b"0123456789abcdef");
    let types = || vec!["text/plain;charset=utf-8".to_owned(), "image/png".to_owned()];
    samples.message("clipboard", FrameId::CLIPBOARD, &Share { to_guest: true, to_host: false });
    let ready = clipboard::Ready {
        user: "dev".into(),
        back_end: "ext-data-control".into(),
        selections: vec![selection, Selection::PRIMARY, Selection(9)],
        share: Share { to_guest: false, to_host: true },
    };
    samples.message("clipboard-ready", FrameId::CLIPBOARD_READY, &ready);
    let offer = |serial, types| Offer { serial, selection: Selection::PRIMARY, types };
    samples.message("clipboard-offer", FrameId::CLIPBOARD_OFFER, &offer(1 << 33, types()));
    samples.message("clipboard-offer-none", FrameId::CLIPBOARD_OFFER, &offer(7, Vec::new()));
    let want = clipboard::Want { call, selection, serial: 300, kind: "image/png".into() };
    samples.message("clipboard-want", FrameId::CLIPBOARD_WANT, &want);
    let error = WireError::new(ErrorKind::NOT_FOUND, "Something else was copied");
    samples.message("clipboard-decline", FrameId::CLIPBOARD_DECLINE, &Decline { call, error });
    let fetch = Fetch { selection, serial: 7, kind: "text/html".into() };
    samples.message("clipboard-fetch", FrameId::CLIPBOARD_FETCH, &fetch);
    samples.message("clipboard-feed", FrameId::CLIPBOARD_FEED, &Feed { call });
    samples.message("clipboard-set", FrameId::CLIPBOARD_SET, &Set { selection, types: types() });
    samples.message("clipboard-taken", FrameId::CLIPBOARD_TAKEN, &Taken { bytes: 500 << 20 });
    lendings(samples);
}

fn lendings(samples: &mut Samples) {
    let (selection, call) = (Selection::CLIPBOARD, *b"0123456789abcdef");
    samples.message("clipboard-files", FrameId::CLIPBOARD_FILES, &files::Files { selection, serial: 7 });
    let want = files::WantFiles { call, selection, serial: 300 };
    samples.message("clipboard-want-files", FrameId::CLIPBOARD_WANT_FILES, &want);
    samples.message("clipboard-lend", FrameId::CLIPBOARD_LEND, &files::Lend { call });
    let root = |name: &[u8], uri: &str, shared| Root { name: name.to_vec(), uri: uri.into(), shared };
    let shared = Shared { share: "src".into(), path: b"a/b.c".to_vec() };
    let roots = vec![
        root(b"r\xe9sum\xe9", "", None),
        root(b"b.c", "", Some(shared)),
        root(b"", "https://example.org/", None),
    ];
    samples.message("clipboard-roots", FrameId::CLIPBOARD_ROOTS, &files::Roots { roots });
    let path = b"photos/1.jpg".to_vec();
    let ask = files::Ask {
        id: 9,
        deed: files::Deed::READ,
        root: 1,
        path,
        handle: 4,
        offset: 1 << 33,
        len: 131_072,
    };
    samples.message("clipboard-ask", FrameId::CLIPBOARD_ASK, &ask);
    let attributes = |kind, target: &[u8]| files::Attributes {
        kind,
        executable: true,
        size: 5 << 30,
        modified: -1,
        modified_ns: 999_999_999,
        target: target.to_vec(),
    };
    let node = files::Node { id: 9, attributes: attributes(NodeKind::LINK, b"../x") };
    samples.message("clipboard-node", FrameId::CLIPBOARD_NODE, &node);
    let entries =
        vec![files::Entry { name: b"x y".to_vec(), attributes: attributes(NodeKind::DIRECTORY, b"") }];
    samples.message("clipboard-entries", FrameId::CLIPBOARD_ENTRIES, &files::Entries { id: 9, entries });
    let end = files::Entries { id: 10, entries: Vec::new() };
    samples.message("clipboard-entries-end", FrameId::CLIPBOARD_ENTRIES, &end);
    let refusal = files::Refusal { id: 9, kind: ErrorKind::NOT_FOUND };
    samples.message("clipboard-refusal", FrameId::CLIPBOARD_REFUSAL, &refusal);
    samples.raw("clipboard-bytes", FrameId::CLIPBOARD_BYTES, 0, b"\x09\0\0\0\0\0\0\0hello");
}

fn displays(samples: &mut Samples) {
    let size = Some(Size { width: 2560, height: 1600 });
    let position = display::Position { x: -1920, y: 70_000 };
    let want = Want { output: "Virtual-1".into(), size, scale: Some(Scale(1333)), position: Some(position) };
    for (word, ask) in [
        ("state", display::Ask::State),
        ("set", display::Ask::Set(vec![want, Want::default()])),
        ("follow", display::Ask::Follow("Virtual-2".into())),
        ("follow-all", display::Ask::Follow(String::new())),
    ] {
        samples.message(&format!("display-{word}"), FrameId::DISPLAY, &Display { ask });
    }
    let output = |name: &str, size, rule| display::Output {
        name: name.into(),
        size,
        refresh: 74_998,
        scale: Scale::ONE,
        position,
        offered: size,
        rule,
        problem: size.map(|_| "The desktop refused it".into()),
    };
    let outputs = vec![output("Virtual-1", size, Rule::HOST), output("Virtual-2", None, Rule(9))];
    let (user, back_end) = ("dev".into(), "sway".into());
    let state = display::State { user, back_end, why: "The compositor is sway".into(), outputs };
    samples.message("display-state-answer", FrameId::DISPLAY_STATE, &state);
}

fn forwards(samples: &mut Samples) {
    let user = || "dev".to_owned();
    let tcp = || Address::Tcp { host: "::1".into(), port: 8080 };
    let unix = || Address::Unix { path: b"/run/x.sock".to_vec() };
    let call = *b"0123456789abcdef";
    samples.message("forward-connect-tcp", FrameId::FORWARD_CONNECT, &Connect { user: user(), to: tcp() });
    samples.message("forward-connect-unix", FrameId::FORWARD_CONNECT, &Connect { user: user(), to: unix() });
    samples.message("forward-listen", FrameId::FORWARD_LISTEN, &Listen { user: user(), on: tcp() });
    samples.message("forward-accept", FrameId::FORWARD_ACCEPT, &Accept { user: user(), call });
    samples.message("forward-refuse", FrameId::FORWARD_REFUSE, &Refuse { call });
    samples.message("forward-open", FrameId::FORWARD_OPEN, &Open { peer: "[::1]:8080".into() });
    samples.message("forward-listening", FrameId::FORWARD_LISTENING, &Listening { on: tcp() });
    let from = "127.0.0.1:55012".into();
    samples.message("forward-incoming", FrameId::FORWARD_INCOMING, &Incoming { call, from });
}

/// The message's bytes without a frame.
pub(crate) fn payload<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::encode_into(message, &mut bytes);
    bytes
}
