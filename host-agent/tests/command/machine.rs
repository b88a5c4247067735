//! What becomes of a machine, as the agent tells it: by the guest's own word, and by QEMU's.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use hospes_protocol::control::Event;
use hospes_protocol::info::Info;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use serde_json::Value;

use crate::guest::{Guest, info};
use crate::home::{Agent, Home, eventually};

/// `hospes events`, from when it has heard one.
struct Events {
    child: Child,
    lines: Receiver<String>,
}

impl Events {
    fn of(home: &Home, guest: &Guest) -> Self {
        let mut child = home.command(["events", "--json"]).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let events = Self { child, lines };
        let heard = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !heard.load(std::sync::atomic::Ordering::SeqCst) {
                    guest.event(&Event::Variable("guest.heard".to_owned()));
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            events.next("variable");
            heard.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        events
    }

    fn next(&self, wanted: &str) -> Value {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(60)).expect(wanted);
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] == wanted {
                return event;
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connected(home: &Home) {
    eventually("the connection", || home.good(["list", "--json"]).contains("\"connected\""));
}

#[test]
fn a_guest_that_goes_down_is_seen_to_stop_and_one_that_restarts_is_not() {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    let _agent = Agent::start(&home);
    connected(&home);
    let events = Events::of(&home, &guest);
    guest.event(&Event::Stopping("reboot".to_owned()));
    assert_eq!(events.next("rebooting")["vm"], "dev");
    guest.event(&Event::Stopping("upgrade".to_owned()));
    guest.restart_daemon();
    events.next("connected");
    guest.event(&Event::Stopping("poweroff".to_owned()));
    events.next("stopping");
    std::fs::remove_file(guest.path()).unwrap();
    guest.restart_daemon();
    assert_eq!(events.next("stopped")["why"], "poweroff");
}

#[test]
fn a_guest_that_goes_on_from_an_earlier_moment_of_its_boot_is_told() {
    let (home, guest) = (Home::new(), Guest::start());
    home.add("dev", &guest);
    let _agent = Agent::start(&home);
    connected(&home);
    let events = Events::of(&home, &guest);
    let at = |uptime_ms| Event::Info(Box::new(Info { uptime_ms, ..info() }));
    guest.event(&at(100_000));
    guest.event(&at(200_000));
    events.next("info");
    guest.event(&at(150_000));
    assert_eq!(events.next("restored")["vm"], "dev");
}

#[test]
fn qemu_tells_of_pauses_and_of_the_end() {
    let (home, guest) = (Home::new(), Guest::start());
    let socket = home.path().join("qmp.sock");
    let socket = socket.to_str().unwrap();
    home.good(["add", "dev", &guest.endpoint(), "--qmp", socket]);
    let _agent = Agent::start(&home);
    connected(&home);
    let events = Events::of(&home, &guest);
    // QEMU comes later than the agent, and its socket has a name before it listens.
    let listener = bind_then_listen(socket);
    let (mut qemu, _) = listener.accept().unwrap();
    say(&mut qemu, r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}"#);
    let mut line = String::new();
    BufReader::new(qemu.try_clone().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"execute\":\"qmp_capabilities\"}\n");
    say(&mut qemu, r#"{"return": {}}"#);
    for (event, told) in [("STOP", "paused"), ("RESUME", "unpaused"), ("SHUTDOWN", "stopped")] {
        say(&mut qemu, &format!(r#"{{"event": "{event}", "data": {{"reason": "guest-shutdown"}}}}"#));
        assert_eq!(events.next(told)["vm"], "dev");
    }
}

/// Listens a while after the socket's name is there: the agent has been told of the name, tried, and been refused.
fn bind_then_listen(path: &str) -> UnixListener {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    listen(&socket, Backlog::new(1).unwrap()).unwrap();
    UnixListener::from(socket)
}

fn say(qemu: &mut UnixStream, line: &str) {
    qemu.write_all(format!("{line}\r\n").as_bytes()).unwrap();
}
