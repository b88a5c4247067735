//! A guest that wants our terminal and our memory: escapes in all that it may say, and floods.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Output, Stdio};

use hospes_protocol::control::{Answer, Ask, Event};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::ExecId;
use hospes_protocol::file::{Entries, Entry, FileReply, Stat};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::freeze::{FileSystem, FreezeReply, FsState, ThawCause, ThawReply, TrimReply, Trimmed};
use hospes_protocol::info::{Disk, Info, Interface, User};
use hospes_protocol::power::{Inhibitor, PowerReply, ScriptEnd, ScriptReport};
use hospes_protocol::process::{Process, Processes};
use hospes_protocol::variable::Variable;
use nix::pty::{OpenptyResult, openpty};

use crate::guest::Guest;
use crate::home::{Agent, Home, eventually, finish, text};

/// Retitles the window, clears the screen, recolours by C1, turns the text around, hides some, rings, and begins a line
/// of its own.
const EVIL: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}\u{200b}\u{7f}\r\nroot# ";

fn evil() -> String {
    EVIL.to_owned()
}

fn info() -> Info {
    Info {
        release: evil(),
        hostname: evil(),
        os: evil(),
        os_id: evil(),
        os_version: evil(),
        kernel: evil(),
        architecture: evil(),
        boot_id: evil(),
        interfaces: vec![Interface {
            name: evil(),
            mac: evil(),
            up: true,
            default_route: true,
            addresses: vec![evil(), format!("192.0.2.7/24{EVIL}")],
        }],
        disks: vec![Disk {
            mount_point: evil(),
            source: evil(),
            kind: evil(),
            total: u64::MAX,
            free: u64::MAX,
        }],
        users: vec![User { name: evil(), uid: u32::MAX, place: evil() }],
        ..Info::default()
    }
}

fn refusal() -> WireError {
    WireError::new(ErrorKind::FORBIDDEN, evil()).hint(evil())
}

fn file_systems() -> Vec<FileSystem> {
    let states = [FsState::FROZEN, FsState::NETWORK, FsState::INCAPABLE, FsState::FAILED, FsState(99)];
    let evil_one = |state| FileSystem { mount: EVIL.into(), kind: evil(), state, error: evil() };
    states.map(evil_one).to_vec()
}

fn reply(ask: &Ask) -> Result<Answer, WireError> {
    let variable = Variable { name: format!("guest.{EVIL}"), value: EVIL.into(), secret: false };
    let script =
        ScriptReport { name: evil(), end: ScriptEnd::ENDED, status: 3, output: EVIL.repeat(3).into() };
    match ask {
        Ask::Ping => Ok(Answer::Pong),
        Ask::Info => Ok(Answer::Info(Box::new(info()))),
        Ask::VariableList => Ok(Answer::Variables(vec![variable])),
        Ask::VariableGet { .. } => Ok(Answer::Variable(variable)),
        Ask::Power(_) => Ok(Answer::Power(PowerReply {
            scripts: vec![script],
            inhibitors: vec![Inhibitor { who: evil(), why: evil() }],
            refused: Some(refusal()),
            by: evil(),
        })),
        Ask::Freeze(freeze) => {
            let refused = (freeze.timeout_ms == 1000).then(refusal);
            let file_systems = file_systems();
            let scripts = vec![script];
            Ok(Answer::Freeze(FreezeReply { serial: 7, took_us: u64::MAX, file_systems, scripts, refused }))
        }
        Ask::Thaw(_) => Ok(Answer::Thaw(ThawReply {
            serial: 7,
            cause: ThawCause::ASKED,
            held_us: u64::MAX,
            file_systems: file_systems(),
            scripts: vec![script],
        })),
        Ask::Trim(_) => Ok(Answer::Trim(TrimReply {
            file_systems: vec![
                Trimmed { mount: EVIL.into(), kind: evil(), bytes: Ok(u64::MAX) },
                Trimmed { mount: EVIL.into(), kind: evil(), bytes: Err(refusal()) },
            ],
        })),
        Ask::VariableRemove { .. } => Err(refusal()),
        _ => Ok(Answer::Done),
    }
}

fn entry() -> Entry {
    let stat = Stat { mode: 0o120_777, user: evil(), group: evil(), target: EVIL.into(), ..Stat::default() };
    Entry { name: EVIL.into(), stat }
}

/// Names, paths and processes.
fn play(id: FrameId, stream: &mut UnixStream) -> Option<()> {
    let mut out = Vec::new();
    match id {
        FrameId::FILE => {
            frame::put(FrameId::FILE_ENTRIES, &Entries(vec![entry()]), &mut out);
            frame::put(FrameId::FILE_REPLY, &FileReply::Count(1), &mut out);
        }
        FrameId::PS => {
            let process = Process {
                pid: 1,
                ppid: 0,
                uid: 0,
                user: evil(),
                id: Some(ExecId(7)),
                state: 0x1b,
                started: 0,
                cpu_ms: 0,
                rss_kib: 0,
                argv: vec![EVIL.into(), b"\xff\x1b[31m".to_vec()],
            };
            frame::put(FrameId::PROCESSES, &Processes { list: vec![process], omitted: u32::MAX }, &mut out);
        }
        _ => frame::put(FrameId::FAILED, &refusal(), &mut out),
    }
    stream.write_all(&out).ok()
}

/// A stat or a new path, which a listing's verbs do not ask for.
fn describe(_id: FrameId, stream: &mut UnixStream) -> Option<()> {
    let mut out = Vec::new();
    frame::put(FrameId::FILE_REPLY, &FileReply::Stat(entry().stat), &mut out);
    stream.write_all(&out).ok()
}

fn name(_id: FrameId, stream: &mut UnixStream) -> Option<()> {
    let mut out = Vec::new();
    frame::put(FrameId::FILE_REPLY, &FileReply::Path(EVIL.into()), &mut out);
    stream.write_all(&out).ok()
}

fn refuse(_id: FrameId, stream: &mut UnixStream) -> Option<()> {
    let mut out = Vec::new();
    frame::put(FrameId::FAILED, &refusal(), &mut out);
    stream.write_all(&out).ok()
}

fn home() -> (Home, Guest) {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    guest.state.lock().unwrap().reply = Some(reply);
    (home, guest)
}

/// All that a command writes to a terminal that is its stdout and stderr.
fn on_terminal(home: &Home, words: &[&str]) -> Output {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let mut command = home.command(words);
    // Colours of our own are not what is looked for.
    command.env("NO_COLOR", "1").env("TERM", "dumb");
    command.stdout(Stdio::from(slave.try_clone().unwrap())).stderr(Stdio::from(slave));
    let child = command.spawn().unwrap();
    // Its copies of the terminal's descriptors would keep the terminal open.
    drop(command);
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        // The terminal's end is an error, EIO.
        let _ = File::from(master).read_to_end(&mut seen);
        seen
    });
    let status = finish(child).status;
    Output { status, stdout: reader.join().unwrap(), stderr: Vec::new() }
}

/// Holds that nothing in what was written is obeyed by a terminal, and that the guest had its say.
fn harmless(words: &[&str], output: &Output) {
    for bytes in [&output.stdout, &output.stderr] {
        let shown = String::from_utf8(bytes.clone()).expect("what is shown is text");
        // A line of ours on a terminal begins at its left edge, even in raw mode.
        for c in shown.replace("\r\r\n", "\n").replace("\r\n", "\n").chars() {
            let hidden =
                matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
            assert!(c == '\n' || !(c.is_control() || hidden), "{words:?} writes {c:?}: {shown:?}");
        }
        assert!(!shown.lines().any(|line| line.starts_with("root#")), "{words:?}: {shown}");
    }
    let all = text(&output.stdout) + &text(&output.stderr);
    assert!(all.contains("owned") || words == ["ip", "dev"], "{words:?} shows nothing of it: {all}");
}

#[test]
fn no_escape_passes_in_information_variables_and_power() {
    let (home, _guest) = home();
    let verbs: [&[&str]; 18] = [
        &["info", "dev"],
        &["info", "dev", "--json"],
        &["ip", "dev"],
        &["list", "--fresh"],
        &["list", "--json"],
        &["var", "dev", "list"],
        &["var", "dev", "list", "--json"],
        &["var", "dev", "unset", "x"],
        &["stop", "dev"],
        &["freeze", "dev"],
        &["freeze", "dev", "--timeout", "1s"],
        &["freeze", "dev", "--json"],
        &["freeze", "dev", "--", "true"],
        &["thaw", "dev"],
        &["thaw", "dev", "--json"],
        &["trim", "dev"],
        &["trim", "dev", "--json"],
        &["suspend", "dev", "--json"],
    ];
    for words in verbs {
        harmless(words, &on_terminal(&home, words));
        harmless(words, &home.run(words));
    }
    harmless(&["var", "get"], &on_terminal(&home, &["var", "dev", "get", "guest.x"]));
    assert_eq!(home.run(["var", "dev", "get", "guest.x"]).stdout, EVIL.as_bytes(), "a pipe gets the bytes");
}

#[test]
fn no_escape_passes_in_names_paths_and_processes() {
    let (home, guest) = home();
    guest.state.lock().unwrap().play = Some(play);
    for words in [&["file", "dev", "ls"][..], &["file", "dev", "ls", "-l"], &["file", "dev", "ls", "-U"]] {
        harmless(words, &on_terminal(&home, words));
    }
    assert_eq!(home.run(["file", "dev", "ls"]).stdout, [EVIL.as_bytes(), b"\n"].concat());
    for words in [&["file", "dev", "ls", "--json"][..], &["ps", "dev"], &["ps", "dev", "--json"]] {
        harmless(words, &on_terminal(&home, words));
        harmless(words, &home.run(words));
    }
    guest.state.lock().unwrap().play = Some(describe);
    harmless(&["stat"], &on_terminal(&home, &["file", "dev", "stat", "x"]));
    harmless(&["stat"], &home.run(["file", "dev", "stat", "x", "--json"]));
    guest.state.lock().unwrap().play = Some(name);
    harmless(&["mktemp"], &on_terminal(&home, &["file", "dev", "mktemp"]));
}

#[test]
fn no_escape_passes_in_any_verbs_refusal() {
    let (home, guest) = home();
    guest.state.lock().unwrap().play = Some(refuse);
    let verbs: [&[&str]; 15] = [
        &["exec", "dev", "true"],
        &["shell", "dev"],
        &["attach", "dev", "7"],
        &["cp", "/etc/hostname", "dev:/tmp/x"],
        &["cp", "dev:/etc/hostname", "here"],
        &["cp", "--json", "dev:/etc/hostname", "here"],
        &["file", "dev", "ls"],
        &["file", "dev", "read", "x"],
        &["file", "dev", "write", "x"],
        &["file", "dev", "rm", "x", "--json"],
        &["ps", "dev"],
        &["kill", "dev", "42"],
        &["connect", "dev", "tcp:22"],
        &["forward", "dev", "-R", "8080:localhost:80"],
        &["logs", "dev"],
    ];
    for words in verbs {
        let output = on_terminal(&home, words);
        assert_ne!(output.status.code(), Some(0), "{words:?}");
        harmless(words, &output);
        harmless(words, &home.run(words));
    }
    // And at the door.
    guest.state.lock().unwrap().refuse = Some(refusal());
    for words in
        [&["exec", "dev", "true"][..], &["wait", "dev"], &["doctor"], &["list"], &["info", "dev", "--json"]]
    {
        harmless(words, &on_terminal(&home, words));
    }
}

#[test]
fn no_escape_passes_through_the_agent() {
    let (home, guest) = home();
    guest.state.lock().unwrap().info = info();
    let mut agent = home.command(["agent"]);
    let log = home.path().join("agent.log");
    let child = agent.stderr(File::create(&log).unwrap()).spawn().unwrap();
    let _agent = Agent { child };
    let listing = || home.run(["list", "--json"]);
    eventually("the session", || text(&listing().stdout).contains("\"connected\""));
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let mut command = home.command(["events"]);
    command.stdout(Stdio::from(slave.try_clone().unwrap())).stderr(Stdio::from(slave));
    let mut events = command.spawn().unwrap();
    drop(command);
    let mut terminal = File::from(master);
    let mut seen = Vec::new();
    // What is told before hospes has subscribed is told to nobody.
    while !["info:", "variable", "stopping:"].iter().all(|word| text(&seen).contains(word)) {
        guest.event(&Event::Info(Box::new(info())));
        guest.event(&Event::Variable(evil()));
        guest.event(&Event::Stopping(evil()));
        let mut bytes = [0; 4096];
        let ready = nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&terminal), nix::poll::PollFlags::POLLIN);
        if nix::poll::poll(&mut [ready], 20u16).unwrap() > 0 {
            let n = terminal.read(&mut bytes).unwrap();
            seen.extend_from_slice(&bytes[..n]);
        }
    }
    events.kill().unwrap();
    let status = events.wait().unwrap();
    // The last read may have ended inside a line.
    seen.truncate(seen.iter().rposition(|byte| *byte == b'\n').unwrap() + 1);
    harmless(&["events"], &Output { status, stdout: seen, stderr: Vec::new() });
    for words in [&["list"][..], &["list", "--json"], &["info", "dev"], &["info", "dev", "--json"]] {
        harmless(words, &on_terminal(&home, words));
    }
    // The session's end in the guest's own words is in the log.
    let mut out = Vec::new();
    frame::put(FrameId::FAILED, &refusal(), &mut out);
    guest.tell(&out);
    let logged = || text(&home.run(["logs", "dev", "--host"]).stdout).contains("owned");
    eventually("the line", logged);
    harmless(&["logs"], &on_terminal(&home, &["logs", "dev", "--host"]));
    let bytes = std::fs::read(&log).unwrap();
    harmless(&["agent"], &Output { status, stdout: bytes, stderr: Vec::new() });
}

/// Says the same until nobody listens.
fn flood(out: &[u8], stream: &mut UnixStream) -> Option<()> {
    loop {
        stream.write_all(out).ok()?;
    }
}

fn endless_listing(_id: FrameId, stream: &mut UnixStream) -> Option<()> {
    // Little to send and much to keep.
    let entry = Entry { name: b"x".to_vec(), stat: Stat::default() };
    let mut out = Vec::new();
    frame::put(FrameId::FILE_ENTRIES, &Entries(vec![entry; 2000]), &mut out);
    flood(&out, stream)
}

#[test]
fn an_endless_listing_is_given_up_and_takes_no_more_than_it_may() {
    let (home, guest) = home();
    guest.state.lock().unwrap().play = Some(endless_listing);
    // With three times of memory what a listing may take, it is not memory that ends it.
    let command = home.command([""; 0]);
    let program = command.get_program().to_owned();
    let mut limited = std::process::Command::new("prlimit");
    limited.arg("--data=805306368").arg(program).args(["file", "dev", "ls", "-l"]).env_clear();
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.current_dir(home.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = finish(limited.spawn().unwrap());
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("256 MiB of names"), "{}", text(&output.stderr));
}

fn resident_kib(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_guest_that_floods_the_agent_with_events_fills_no_memory_and_holds_up_no_other() {
    let (home, guest) = home();
    let other = Guest::start();
    home.add("other", &other);
    let agent = Agent::start(&home);
    eventually("the sessions", || guest.controls() == 1 && other.controls() == 1);
    // One who subscribed and reads nothing.
    let mut deaf = home.command(["events"]).spawn().unwrap();
    let mut out = Vec::new();
    for _ in 0..500 {
        frame::put(FrameId::EVENT, &Event::Variable("x".repeat(100)), &mut out);
        frame::put(FrameId::EVENT, &Event::Info(Box::new(info())), &mut out);
    }
    let mut settled = 0;
    for round in 0..40 {
        guest.tell(&out);
        assert_eq!(home.good(["exec", "other", "say", "here"]), "here");
        if round == 20 {
            settled = resident_kib(&agent);
        }
    }
    let end = resident_kib(&agent);
    assert!(end < settled + 4096, "the agent grew from {settled} to {end} KiB");
    deaf.kill().unwrap();
    deaf.wait().unwrap();
}
