//! Freezing asked of a real `hospes-toolsd`, with a real helper over file systems that do nothing but remember.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use guest_tools::freeze::edge::Edge;
use guest_tools::freeze::helper;
use guest_tools::freeze::mounts::{self, Device, Mount};
use guest_tools::freeze::plan::Candidate;
use hospes_protocol::control::{Answer, Ask, Reply, Request};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::FrameId;
use hospes_protocol::freeze::{Freeze, FreezeReply, FsState, Thaw, ThawCause, ThawReply, Trim};
use nix::errno::Errno;

use crate::harness::{Control, Guest, command, until};

const LONG: u64 = 60_000;
/// Passes while a test waits for it; long enough to be frozen first on a machine that has much to do.
const SHORT: u64 = 2_000;

/// A machine with two disks.
#[derive(Debug, Default)]
struct Machine {
    log: Mutex<Vec<String>>,
    refuses: bool,
}

impl Machine {
    fn note(&self, act: &str, handle: &str) {
        self.log.lock().unwrap().push(format!("{act} {handle}"));
    }
}

impl Edge for Machine {
    type Handle = String;

    fn tables(&self) -> io::Result<(Vec<Mount>, HashSet<Vec<u8>>)> {
        let table =
            b"1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv rw - xfs b rw\n3 1 0:9 / /n rw - nfs4 h:/ rw\n";
        Ok((mounts::parse(table), HashSet::new()))
    }

    fn beneath(&self, _: Device) -> Vec<Device> {
        Vec::new()
    }

    fn open(&self, candidate: &Candidate) -> io::Result<String> {
        Ok(String::from_utf8(candidate.places[0].point.clone()).unwrap())
    }

    fn sync(&self, _: &String) {}

    fn lock_memory(&self) -> io::Result<()> {
        Ok(())
    }

    fn unlock_memory(&self) {}

    fn freeze(&self, handle: &String) -> Result<(), Errno> {
        self.note("freeze", handle);
        if self.refuses && handle == "/" { Err(Errno::EBUSY) } else { Ok(()) }
    }

    fn thaw(&self, handle: &String) -> Result<(), Errno> {
        self.note("thaw", handle);
        Ok(())
    }

    fn trim(&self, _: &String, minimum: u64) -> Result<u64, Errno> {
        Ok(minimum * 2)
    }
}

/// A guest and the helper of its machine, which outlives the daemon.
fn guest(policy: &str, machine: Machine) -> (Guest, Arc<Machine>) {
    let guest = Guest::start(policy);
    let run = guest.path("run");
    let listener = UnixListener::bind(helper::socket(&run)).unwrap();
    let machine = Arc::new(machine);
    let edge = Arc::clone(&machine);
    // It serves until the test's process ends.
    std::thread::spawn(move || helper::serve(&listener, &*edge, &run, false));
    for (folder, word) in [("freeze.d", "freeze"), ("thaw.d", "thaw")] {
        let path = guest.path("etc").join(folder).join("10-note");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!("#!/bin/sh\necho {word} $1 >> {}\n", guest.path("order").display());
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    (guest, machine)
}

fn order(guest: &Guest) -> String {
    fs::read_to_string(guest.path("order")).unwrap_or_default()
}

/// One request, alone on a connection.
fn alone(guest: &Guest, host: &mut Control, ask: Ask) -> Result<Answer, WireError> {
    let mut lone = host.open(guest, FrameId::REQUEST, &Request { number: 1, ask });
    let reply: Reply = lone.expect(FrameId::REPLY);
    reply.answer
}

fn freeze(guest: &Guest, host: &mut Control, timeout_ms: u64) -> Result<FreezeReply, WireError> {
    match alone(guest, host, Ask::Freeze(Freeze { timeout_ms, script_timeout_ms: None }))? {
        Answer::Freeze(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn thaw(guest: &Guest, host: &mut Control, serial: Option<u64>) -> Result<ThawReply, WireError> {
    match alone(guest, host, Ask::Thaw(Thaw { serial }))? {
        Answer::Thaw(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

#[test]
fn scripts_run_around_it_and_what_would_write_is_busy_at_once() {
    let (guest, machine) = guest("", Machine::default());
    let mut host = guest.control(1);
    let reply = freeze(&guest, &mut host, LONG).unwrap();
    assert_eq!(reply.refused, None);
    let told: Vec<_> = reply.file_systems.iter().map(|one| (&*one.mount, one.state)).collect();
    assert_eq!(told, [(&b"/srv"[..], FsState::FROZEN), (b"/", FsState::FROZEN), (b"/n", FsState::NETWORK)]);
    assert_eq!((order(&guest).as_str(), reply.scripts.len()), ("freeze freeze\n", 1));

    let logged = guest.log();
    let mut exec = host.open(&guest, FrameId::EXEC, &command(&["true"]));
    assert_eq!(exec.refused().kind, ErrorKind::BUSY);
    assert_eq!(freeze(&guest, &mut host, LONG).unwrap_err().kind, ErrorKind::BUSY);
    assert_eq!(alone(&guest, &mut host, Ask::Trim(Trim { minimum: 0 })).unwrap_err().kind, ErrorKind::BUSY);
    assert_eq!(host.ask(Ask::Ping), Ok(Answer::Pong));
    assert_eq!(guest.log(), logged, "nothing is logged while the log's file may be frozen");

    let reply = thaw(&guest, &mut host, Some(reply.serial)).unwrap();
    assert_eq!(reply.cause, ThawCause::ASKED);
    let told: Vec<_> = reply.file_systems.iter().map(|one| (&*one.mount, one.state)).collect();
    assert_eq!(told, [(&b"/"[..], FsState::FROZEN), (b"/srv", FsState::FROZEN)]);
    assert_eq!(order(&guest), "freeze freeze\nthaw thaw\n");
    assert_eq!(*machine.log.lock().unwrap(), ["freeze /srv", "freeze /", "thaw /", "thaw /srv"]);
    assert!(guest.log().contains("freeze as root by"), "the audit line");
    assert_eq!(thaw(&guest, &mut host, None).unwrap_err().kind, ErrorKind::NOT_FOUND);
}

#[test]
fn a_thaw_after_the_deadline_says_that_it_came_too_late() {
    let (guest, _) = guest("", Machine::default());
    let mut host = guest.control(1);
    let serial = freeze(&guest, &mut host, SHORT).unwrap().serial;
    until("the guest has thawed by itself", || (order(&guest) == "freeze freeze\nthaw thaw\n").then_some(()));
    assert_eq!(thaw(&guest, &mut host, Some(serial)).unwrap().cause, ThawCause::DEADLINE);
    // Another one's is no matter of this.
    assert_eq!(thaw(&guest, &mut host, Some(serial ^ 2)).unwrap_err().kind, ErrorKind::NOT_FOUND);
}

#[test]
fn the_next_daemon_knows_what_is_frozen_and_thaws_it() {
    let (mut guest, machine) = guest("", Machine::default());
    let mut host = guest.control(1);
    let serial = freeze(&guest, &mut host, LONG).unwrap().serial;
    guest.restart();
    let mut host = guest.control(1);
    // It is busy from its first moment on, and asks the helper meanwhile.
    let mut exec = host.open(&guest, FrameId::EXEC, &command(&["true"]));
    assert_eq!(exec.refused().kind, ErrorKind::BUSY);
    let reply = until("it has found the helper", || match thaw(&guest, &mut host, Some(serial)) {
        Err(error) if error.kind == ErrorKind::BUSY => None,
        reply => Some(reply.unwrap()),
    });
    assert_eq!((reply.serial, reply.cause), (serial, ThawCause::ASKED));
    assert_eq!(order(&guest), "freeze freeze\nthaw thaw\n");
    assert_eq!(machine.log.lock().unwrap().len(), 4);
}

#[test]
fn one_that_cannot_be_frozen_refuses_all_and_names_it() {
    let (guest, machine) = guest("", Machine { refuses: true, ..Machine::default() });
    let mut host = guest.control(1);
    let reply = freeze(&guest, &mut host, LONG).unwrap();
    let error = reply.refused.unwrap();
    assert!(
        error.message.starts_with("/ cannot be frozen") && error.hint.contains("fsfreeze -u /"),
        "{error:?}"
    );
    assert_eq!((reply.serial, reply.file_systems[0].state), (0, FsState::UNDONE));
    assert_eq!(*machine.log.lock().unwrap(), ["freeze /srv", "freeze /", "thaw /srv"]);
    assert_eq!(order(&guest), "freeze freeze\nthaw thaw\n", "what was quiesced goes on");
}

#[test]
fn a_script_that_fails_keeps_it_from_being_frozen() {
    let (guest, machine) = guest("", Machine::default());
    fs::write(guest.path("etc/freeze.d/10-note"), "#!/bin/sh\nexit 3\n").unwrap();
    let mut host = guest.control(1);
    let reply = freeze(&guest, &mut host, LONG).unwrap();
    assert_eq!(reply.refused.unwrap().kind, ErrorKind::SCRIPT);
    assert_eq!((reply.scripts[0].status, reply.scripts.len()), (3, 2));
    assert!(machine.log.lock().unwrap().is_empty());
    assert_eq!(order(&guest), "thaw thaw\n");
}

#[test]
fn the_policy_bounds_it_and_a_session_has_none() {
    let (guest, _) = guest("[freeze]\nlongest = 5\n", Machine::default());
    let mut host = guest.control(1);
    let error = freeze(&guest, &mut host, 5001).unwrap_err();
    assert!(error.kind == ErrorKind::LIMIT && error.message.contains("5 s"), "{error:?}");
    assert_eq!(freeze(&guest, &mut host, 0).unwrap_err().kind, ErrorKind::LIMIT);
    assert_eq!(host.ask(Ask::Thaw(Thaw { serial: None })).unwrap_err().kind, ErrorKind::UNSUPPORTED);
    match alone(&guest, &mut host, Ask::Trim(Trim { minimum: 21 })) {
        Ok(Answer::Trim(reply)) => assert_eq!(reply.file_systems[0].bytes, Ok(42)),
        other => panic!("{other:?}"),
    }
    guest.write_policy("[verbs]\nfreeze = false\n");
    until("the policy is read again", || {
        freeze(&guest, &mut host, 5001).is_err_and(|error| error.kind == ErrorKind::FORBIDDEN).then_some(())
    });
}

#[test]
fn a_guest_without_the_helper_says_how_to_get_it() {
    let guest = Guest::start("");
    let mut host = guest.control(1);
    let error = freeze(&guest, &mut host, LONG).unwrap().refused.unwrap();
    assert!(error.hint.contains("hospes-freeze.socket"), "{error:?}");
}
