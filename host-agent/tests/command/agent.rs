//! The agent: one round trip for commands while it lives, and nothing lost when it does not.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use hospes_protocol::control::Event;
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::handshake::Announce;
use hospes_protocol::keys::SecretKey;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::guest::Guest;
use crate::home::{Agent, Home, eventually, finish, text};

fn state(home: &Home, vm: &str) -> String {
    let listing: Value = serde_json::from_str(&home.good(["list", "--json"])).unwrap();
    let found = listing["vms"].as_array().unwrap().iter().find(|entry| entry["name"] == vm).cloned();
    found.map_or(String::new(), |entry| entry["state"].as_str().unwrap().to_owned())
}

fn connected(home: &Home, vm: &str) {
    eventually("the connection", || state(home, vm) == "connected");
}

fn home() -> (Home, Guest, Agent) {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    let agent = Agent::start(&home);
    connected(&home, "dev");
    (home, guest, agent)
}

#[test]
fn with_the_agent_commands_need_no_handshake_of_their_own() {
    let (home, guest, _agent) = home();
    for _ in 0..5 {
        assert_eq!(home.good(["exec", "dev", "say", "hello"]), "hello");
    }
    assert_eq!(guest.count(|counts| &counts.handshakes), 1);
    assert_eq!(guest.count(|counts| &counts.tickets), 5);
}

#[test]
fn a_stale_ticket_costs_one_more_round_trip_and_nothing_else() {
    let (home, guest, _agent) = home();
    guest.forget_sessions();
    assert_eq!(home.good(["exec", "dev", "say", "hello"]), "hello");
    assert_eq!(guest.count(|counts| &counts.handshakes), 2);
    assert_eq!(guest.state.lock().unwrap().execs.len(), 1, "the command ran twice");
}

#[test]
fn a_daemon_that_restarts_is_connected_to_again() {
    let (home, guest, _agent) = home();
    guest.restart_daemon();
    eventually("another session", || guest.controls() == 1);
    connected(&home, "dev");
    home.good(["exec", "dev", "true"]);
    assert_eq!(guest.count(|counts| &counts.handshakes), 2);
}

#[test]
fn killing_the_agent_ends_no_command_and_the_next_needs_none() {
    let (home, guest, mut agent) = home();
    let mut child = home.command(["exec", "dev", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdin.write_all(b"before\n").unwrap();
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    stdin.write_all(b"after\n").unwrap();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "before\nafter\n");
    drop(stdin);
    assert_eq!(finish(child).status.code(), Some(0));
    assert_eq!(home.good(["exec", "dev", "say", "alone"]), "alone");
    assert_eq!(guest.count(|counts| &counts.handshakes), 2);
    assert_eq!(state(&home, "dev"), "connected");
    // The socket's file that a killed agent leaves is no obstacle to the next.
    let _agent = Agent::start(&home);
    connected(&home, "dev");
}

#[test]
fn an_agent_that_hangs_is_done_without() {
    let (home, guest, agent) = home();
    let pid = Pid::from_raw(i32::try_from(agent.child.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    assert_eq!(home.good(["exec", "dev", "say", "alone"]), "alone");
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(guest.count(|counts| &counts.tickets), 0);
}

#[test]
fn an_agent_that_talks_nonsense_is_done_without() {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    std::fs::create_dir_all(home.agent_socket().parent().unwrap()).unwrap();
    let listener = UnixListener::bind(home.agent_socket()).unwrap();
    std::thread::spawn(move || {
        for (stream, answer) in
            listener.incoming().zip(["\n", "{}\n", "{\"ticket\":{}}\n", "", "x"].iter().cycle())
        {
            let _ = stream.unwrap().write_all(answer.as_bytes());
        }
    });
    for _ in 0..5 {
        assert_eq!(home.good(["exec", "dev", "say", "alone"]), "alone");
    }
}

#[test]
fn who_cannot_prove_to_be_the_agents_guest_is_found_out() {
    let (home, guest, _agent) = home();
    guest.state.lock().unwrap().impostor = true;
    let output = home.run(["exec", "dev", "say", "secret"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(125), String::new()));
    assert!(text(&output.stderr).contains("not the guest that the agent knows"), "{}", text(&output.stderr));
}

#[test]
fn a_ticket_is_only_for_the_endpoint_that_the_agent_knows() {
    let (home, guest, _agent) = home();
    let elsewhere = Guest::start();
    let question = |endpoint: &str| {
        let mut stream = UnixStream::connect(home.agent_socket()).unwrap();
        writeln!(stream, r#"{{"ask":"ticket","vm":"dev","endpoint":"{endpoint}"}}"#).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    };
    assert!(question(&elsewhere.endpoint()).starts_with(r#"{"error""#));
    assert!(question(&guest.endpoint()).starts_with(r#"{"ticket""#));
}

#[test]
fn the_socket_is_for_us_alone_and_there_is_one_agent() {
    let (home, _guest, _agent) = home();
    let mode = std::fs::metadata(home.agent_socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let output = home.run(["agent"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("Another agent"), "{}", text(&output.stderr));
}

/// An agent that a service manager starts with its socket, which is ours here.
fn activated(home: &Home, listener: &UnixListener) -> Agent {
    let hospes = home.command([""; 0]);
    let mut shell = Command::new("/bin/sh");
    // The descriptor is the third, and the process id is the agent's own.
    shell.args(["-c", "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" agent"]);
    shell.arg(hospes.get_program()).env_clear();
    shell.envs(hospes.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let child = shell.stdin(OwnedFd::from(listener.try_clone().unwrap())).stdout(Stdio::null()).spawn();
    Agent { child: child.unwrap() }
}

#[test]
fn an_agent_that_is_started_for_its_socket_serves_who_waits_there_and_leaves_the_socket() {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    let directory = home.agent_socket().parent().unwrap().to_owned();
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
    let listener = UnixListener::bind(home.agent_socket()).unwrap();
    // Somebody asks before there is an agent, as whoever has the service manager start one.
    let mut early = UnixStream::connect(home.agent_socket()).unwrap();
    writeln!(early, r#"{{"ask":"list"}}"#).unwrap();
    let mut agent = activated(&home, &listener);
    let mut line = String::new();
    BufReader::new(early).read_line(&mut line).unwrap();
    assert!(line.contains(r#""dev""#), "{line}");
    connected(&home, "dev");
    let before = guest.count(|counts| &counts.handshakes);
    assert_eq!(home.good(["exec", "dev", "say", "hello"]), "hello");
    assert_eq!(guest.count(|counts| &counts.handshakes), before, "the command did without the agent");

    // One that is started by hand finds the place taken, while an agent runs and while the manager only listens.
    let by_hand = || {
        let output = home.run(["agent"]);
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains("Another agent"), "{}", text(&output.stderr));
    };
    by_hand();
    kill(Pid::from_raw(i32::try_from(agent.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(agent.child.wait().unwrap().success());
    by_hand();
    assert!(home.agent_socket().exists(), "the manager's socket is not the agent's to remove");
    let _next = activated(&home, &listener);
    connected(&home, "dev");
}

#[test]
fn a_vm_that_boots_later_is_connected_to_when_its_socket_appears() {
    let (home, guest) = (Home::new(), Guest::absent(true));
    home.add("dev", &guest);
    let _agent = Agent::start(&home);
    eventually("the first attempts", || state(&home, "dev") == "unreachable");
    // Past the attempts that bridge a socket's bind and listen: from here on only the event helps.
    std::thread::sleep(std::time::Duration::from_millis(900));
    guest.boot();
    connected(&home, "dev");
}

#[test]
fn vms_come_and_go_with_their_files() {
    let (home, guest, _agent) = home();
    let other = Guest::start();
    let file = home.path().join("config/hospes/vms/by-hand.toml");
    std::fs::write(&file, format!("endpoint = \"{}\"\n", other.endpoint())).unwrap();
    connected(&home, "by-hand");
    std::fs::remove_file(&file).unwrap();
    eventually("the removal", || state(&home, "by-hand").is_empty());
    std::fs::write(&file, "endpoint = 7\n").unwrap();
    eventually("the broken file", || state(&home, "by-hand") == "refused");
    home.good(["remove", "dev"]);
    eventually("the removal", || state(&home, "dev").is_empty());
    drop(guest);
}

#[test]
fn a_guest_with_another_key_is_refused_until_it_is_forgotten() {
    let (home, guest, _agent) = home();
    guest.state.lock().unwrap().key = SecretKey::from_bytes(&[9; 32]);
    guest.restart_daemon();
    eventually("the refusal", || state(&home, "dev") == "refused");
    assert_eq!(home.run(["exec", "dev", "true"]).status.code(), Some(125));
    home.good(["forget", "dev"]);
    connected(&home, "dev");
}

#[test]
fn list_is_instant_whatever_the_vms_do() {
    let home = Home::new();
    // A VMM that takes connections and never answers, one that is gone, and one that is well.
    let dir = tempfile::tempdir().unwrap();
    let _mute = UnixListener::bind(dir.path().join("mute")).unwrap();
    home.good(["add", "mute", &format!("unix:{}", dir.path().join("mute").display())]);
    home.good(["add", "gone", &format!("unix:{}", dir.path().join("gone").display())]);
    let guest = Guest::start();
    home.add("well", &guest);
    let states = || ["gone", "mute", "well"].map(|vm| state(&home, vm));
    assert_eq!(states(), ["unreachable", "unreachable", "connected"]);
    let table = home.good(["list"]);
    assert!(table.contains("192.0.2.7"), "{table}");
    let _agent = Agent::start(&home);
    eventually("what can be known", || states() == ["unreachable", "connecting", "connected"]);
    let table = home.good(["list"]);
    assert!(table.contains("192.0.2.7") && table.contains("Debian GNU/Linux 13"), "{table}");
    assert_eq!(home.good(["list", "--quiet"]), "gone\nmute\nwell\n");
}

#[test]
fn events_tell_what_happens() {
    let (home, guest, _agent) = home();
    let mut child = home.command(["events", "--json"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = |wanted: &str| loop {
        let event: Value = serde_json::from_str(&lines.next().expect(wanted).unwrap()).unwrap();
        if event["event"] == wanted {
            break event;
        }
    };
    // What happens before hospes has subscribed is not told: make something happen until it is.
    let subscribed = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !subscribed.load(std::sync::atomic::Ordering::SeqCst) {
                guest.event(&Event::Stopping("test".to_owned()));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        next("stopping");
        subscribed.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    let mut info = crate::guest::info();
    info.hostname = "renamed\u{1b}[2J\u{202e}".to_owned();
    guest.event(&Event::Info(Box::new(info)));
    let event = next("info");
    assert_eq!(
        (&event["vm"], &event["info"]["hostname"]),
        (&"dev".into(), &"renamed\u{1b}[2J\u{202e}".into())
    );
    guest.restart_daemon();
    assert!(next("disconnected")["error"]["message"].is_string());
    assert_eq!(next("connected")["first_use"], false);
    home.add("other", &guest);
    assert_eq!(next("added")["vm"], "other");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_announced_guest_is_listed_apart_and_takes_no_name() {
    let home = Home::new();
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("unix:{}", dir.path().join("vsock").display());
    let mut agent = home.command(["agent", "--announce", &endpoint]).stdout(Stdio::null()).spawn().unwrap();
    let socket = dir.path().join("vsock_651");
    eventually("the announce socket", || UnixStream::connect(&socket).is_ok());
    let mut out = Vec::new();
    let announce = Announce {
        hostname: "new\u{1b}guest".to_owned(),
        guest_key: SecretKey::from_bytes(&[3; 32]).public(),
    };
    frame::put(FrameId::ANNOUNCE, &announce, &mut out);
    UnixStream::connect(&socket).unwrap().write_all(&out).unwrap();
    UnixStream::connect(&socket).unwrap().write_all(&[0xff; 64]).unwrap();
    let listing = || serde_json::from_str::<Value>(&home.good(["list", "--json"])).unwrap();
    eventually("the announcement", || listing()["announced"].as_array().is_some_and(|list| list.len() == 1));
    let listing = listing();
    assert_eq!(listing["vms"], Value::Array(vec![]));
    assert_eq!(listing["announced"][0]["endpoint"], endpoint.as_str());
    assert_eq!(listing["announced"][0]["hostname"], "new\\u{1b}guest");
    assert_eq!(home.run(["exec", "newguest", "--", "true"]).status.code(), Some(125));
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn a_vms_announcement_ends_the_back_off() {
    let (home, guest) = (Home::new(), Guest::absent(true));
    home.add("dev", &guest);
    // A VMM that is up while its guest boots: it takes connections and closes them.
    let listener = UnixListener::bind(guest.path()).unwrap();
    let booting = std::thread::spawn(move || {
        for _ in 0..7 {
            drop(listener.accept().unwrap());
        }
        listener
    });
    let _agent = Agent::start(&home);
    // Seven attempts: the next is seconds away.
    let _listener = booting.join().unwrap();
    guest.boot();
    let mut out = Vec::new();
    let announce =
        Announce { hostname: "dev".to_owned(), guest_key: SecretKey::from_bytes(&[3; 32]).public() };
    frame::put(FrameId::ANNOUNCE, &announce, &mut out);
    let socket = guest.path().with_file_name("vsock_651");
    UnixStream::connect(socket).unwrap().write_all(&out).unwrap();
    connected(&home, "dev");
}
