//! A real `hospes-toolsd`, and hosts that are good, wrong or hostile.

use std::os::unix::fs::PermissionsExt;

use hospes_protocol::control::{Answer, Ask, Event};
use hospes_protocol::error::ErrorKind;
use hospes_protocol::exec::{Exec, STDIN, Stdin};
use hospes_protocol::frame::{self, FrameId, Header};
use hospes_protocol::limits::{DATA_LEN, LARGE_MESSAGE_LEN};
use hospes_protocol::process::Ps;
use hospes_protocol::version::Capabilities;

use nix::sys::signal::{Signal, kill};

use crate::harness::{Connection, Guest, Outcome, command, host_key, myself, outcome, until};

fn nobody() -> Ps {
    Ps { user: "no-user-has-this-name".into(), all: false }
}

#[test]
fn the_first_host_is_remembered_through_a_crash_and_another_is_refused_by_both_fingerprints() {
    let mut guest = Guest::start("");
    let first = guest.control(1);
    assert!(first.ready.first_use);
    guest.restart();
    let again = guest.control(1);
    assert!(!again.ready.first_use);
    assert_eq!(again.session.peer, first.session.peer, "the guest's key survives");

    let mut stranger = guest.connect();
    stranger.prove(2, |out| frame::put_raw(FrameId::CONTROL, 0, b"", out));
    let refusal = stranger.refused();
    assert_eq!(refusal.kind, ErrorKind::UNTRUSTED);
    for key in [1, 2] {
        assert!(refusal.message.contains(&host_key(key).public().fingerprint()), "{}", refusal.message);
    }
    assert!(refusal.hint.contains("hospes-tools trust add") && refusal.hint.contains("trust reset"));
    until("the refusal is in the log", || guest.log().contains("Refused SHA256:").then_some(()));
}

#[test]
fn a_pinned_guest_trusts_nobody_for_being_first() {
    let guest = Guest::start("[trust]\nmode = \"pinned\"\n");
    let mut host = guest.connect();
    host.prove(1, |out| frame::put_raw(FrameId::CONTROL, 0, b"", out));
    assert_eq!(host.refused().kind, ErrorKind::UNTRUSTED);
    assert!(!guest.path("state/first-use").exists());

    assert!(
        guest.tools(&["trust", "add", &host_key(1).public().to_text(), "--name", "mine"]).status.success()
    );
    guest.status(|status| status["trusted"].as_array().is_some_and(|list| list.len() == 1));
    assert!(!guest.control(1).ready.first_use);
}

#[test]
fn a_forged_proof_is_refused_and_pins_nobody() {
    let guest = Guest::start("");
    let mut host = guest.connect();
    let mut other = guest.connect();
    // Host 1's hello, and a proof that was made in another conversation.
    let mut hello = Vec::new();
    let key = host_key(1);
    let entropy = hospes_protocol::handshake::Entropy { share: [7; 32], nonce: [8; 32], session: [0; 16] };
    let proving = hospes_protocol::handshake::Host::start(&key, Capabilities::EXEC, &entropy, &mut hello);
    host.send(&hello);
    other.send(&hello);
    let (_, _, server_hello) = other.frame().unwrap();
    let mut auth = Vec::new();
    proving.finish(&server_hello, &mut auth).unwrap();
    assert_eq!(host.frame().unwrap().0, FrameId::SERVER_HELLO);
    host.send(&auth);
    assert_eq!(host.refused().kind, ErrorKind::UNPROVED);
    assert!(!guest.path("state/first-use").exists());
}

#[test]
fn a_ticket_opens_once_and_not_after_its_session() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    let (ticket, expected) = control.ticket();
    let with_request = |ticket: &[u8]| {
        let mut out = ticket.to_vec();
        frame::put(FrameId::PS, &nobody(), &mut out);
        let mut connection = guest.connect();
        connection.send(&out);
        connection
    };
    let mut first = with_request(&ticket);
    assert!(expected.matches(&first.expect(FrameId::OPENED)));
    assert_eq!(first.refused().kind, ErrorKind::NO_USER);
    let mut second = with_request(&ticket);
    assert_eq!(second.refused().kind, ErrorKind::UNPROVED);

    let (unused, _) = control.ticket();
    drop(control);
    guest.status(|status| status["sessions"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(with_request(&unused).refused().kind, ErrorKind::STALE_TICKET);
}

#[test]
fn a_ticket_opens_no_control_session() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    let (mut out, _) = control.ticket();
    frame::put_raw(FrameId::CONTROL, 0, b"", &mut out);
    let mut connection = guest.connect();
    connection.send(&out);
    let _: hospes_protocol::ticket::Opened = connection.expect(FrameId::OPENED);
    assert_eq!(connection.refused().kind, ErrorKind::PROTOCOL);
}

#[test]
fn a_control_session_answers_and_an_ask_of_a_later_release_is_no_fault() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    assert_eq!(control.ask(Ask::Ping), Ok(Answer::Pong));
    let Ok(Answer::Info(info)) = control.ask(Ask::Info) else { panic!("no information") };
    assert_eq!(info.kernel, nix::sys::utsname::uname().unwrap().release().to_string_lossy());

    // Request 77 with the 200th kind of ask, and then a frame that nobody knows.
    let mut later = Vec::new();
    frame::put(FrameId::REQUEST, &(77u64, 200u32), &mut later);
    control.connection.send(&later);
    let reply: hospes_protocol::control::Reply = control.connection.expect(FrameId::REPLY);
    assert_eq!((reply.number, reply.answer.unwrap_err().kind), (77, ErrorKind::UNSUPPORTED));
    let mut unknown = Vec::new();
    frame::put_raw(FrameId(0x7fff), 0, b"what", &mut unknown);
    control.connection.send(&unknown);
    let answered: hospes_protocol::error::Unknown = control.connection.expect(FrameId::UNKNOWN);
    assert_eq!(answered.id, 0x7fff);
    assert_eq!(control.ask(Ask::Ping), Ok(Answer::Pong));
}

#[test]
fn a_subscriber_is_told_when_the_host_name_changes() {
    // In namespaces of its own, where the daemon's host name is ours to change.
    let guest = Guest::start_within("", &[], &["unshare", "--map-root-user", "--uts", "--"]);
    let mut control = guest.control(1);
    assert_eq!(control.ask(Ask::Subscribe), Ok(Answer::Done));
    assert_eq!(control.ask(Ask::Subscribe), Ok(Answer::Done), "asking twice is no fault");
    let pid = guest.pid().to_string();
    let renamed = std::process::Command::new("nsenter")
        .args(["--target", &pid, "--user", "--preserve-credentials", "--uts", "hostname", "renamed"])
        .status();
    assert!(renamed.unwrap().success());
    let Event::Info(info) = control.event() else { panic!("another event") };
    assert_eq!(info.hostname, "renamed");
}

#[test]
fn a_daemon_that_is_told_to_stop_says_so_to_its_sessions() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    let status = guest.status(|status| status["sessions"].as_array().is_some_and(|list| list.len() == 1));
    let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(matches!(control.event(), Event::Stopping(_)));
    assert!(control.connection.frame().is_none());
    guest.status(|status| status["state"] == "stopped");
    assert_eq!(guest.tools(&["status"]).status.code(), Some(3));
}

#[test]
fn the_policy_forbids_and_is_read_again_when_it_changes() {
    let guest = Guest::start("[verbs]\nps = false\n");
    let mut control = guest.control(1);
    let refusal = control.open(&guest, FrameId::PS, &nobody()).refused();
    assert_eq!(refusal.kind, ErrorKind::FORBIDDEN);
    assert!(refusal.hint.contains("[verbs] ps"), "{}", refusal.hint);

    guest.write_policy("[verbs]\ninfo = false\n");
    until("the new policy is in force", || {
        (control.open(&guest, FrameId::PS, &nobody()).refused().kind == ErrorKind::NO_USER).then_some(())
    });
    assert_eq!(control.ask(Ask::Info).unwrap_err().kind, ErrorKind::FORBIDDEN);
    assert!(!guest.control(1).session.capabilities.has(Capabilities::INFO));
}

#[test]
fn a_mistake_in_the_policy_leaves_the_old_one_in_force_and_is_shown() {
    let guest = Guest::start("[verbs]\nps = false\n");
    let mut control = guest.control(1);
    guest.write_policy("[verbs]\nps = true\nexce = true\n");
    let status = guest.status(|status| !status["config_error"].is_null());
    assert!(status["config_error"].as_str().unwrap().contains("tools.toml:3: unknown field `exce`"));
    assert_eq!(control.open(&guest, FrameId::PS, &nobody()).refused().kind, ErrorKind::FORBIDDEN);

    let shown = String::from_utf8(guest.tools(&["status"]).stdout).unwrap();
    assert!(shown.contains("unknown field `exce`") && shown.contains("not in force"), "{shown}");
    assert_eq!(guest.tools(&["config", "check"]).status.code(), Some(1));
    guest.write_policy("");
    guest.status(|status| status["config_error"].is_null());
    assert_eq!(guest.tools(&["config", "check"]).status.code(), Some(0));
}

#[test]
fn a_guest_that_starts_with_a_damaged_policy_allows_nothing() {
    let guest = Guest::start("[verbs]\nexec = flase\n");
    let mut host = guest.connect();
    host.prove(1, |out| frame::put(FrameId::PS, &nobody(), out));
    assert_eq!(host.refused().kind, ErrorKind::UNTRUSTED);
}

#[test]
fn root_is_refused_where_the_policy_says_so() {
    let guest = Guest::start("[users]\nroot = false\n");
    let mut control = guest.control(1);
    let root = Ps { user: "root".into(), all: false };
    assert_eq!(control.open(&guest, FrameId::PS, &root).refused().kind, ErrorKind::FORBIDDEN);
}

#[test]
fn a_host_that_is_no_longer_trusted_loses_its_session() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    let fingerprint = host_key(1).public().fingerprint();
    let listed = String::from_utf8(guest.tools(&["trust", "list"]).stdout).unwrap();
    assert!(listed.contains(&fingerprint) && listed.contains("first use"), "{listed}");
    let removed = guest.tools(&["trust", "remove", &fingerprint]);
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(control.connection.refused().kind, ErrorKind::UNTRUSTED);
    assert!(guest.control(2).ready.first_use, "and the next one is the first");
}

#[test]
fn no_more_control_sessions_than_the_limit() {
    let guest = Guest::start("[limits]\nsessions = 1\n");
    let mut one = guest.control(1);
    let mut two = guest.control(1);
    assert_eq!(two.connection.refused().kind, ErrorKind::LIMIT);
    assert_eq!(one.ask(Ask::Ping), Ok(Answer::Pong));
}

#[test]
fn silent_connections_hold_others_up_until_the_deadline_and_no_longer() {
    let guest = Guest::start_with("[limits]\nhandshakes = 2\n", &["--handshake-ms", "1000"]);
    let mut silent = [guest.connect(), guest.connect()];
    // It waits for a place, and gets one when the silent ones have lost theirs.
    let mut third = guest.connect();
    third.send(b"GET / HTTP/1.1\r\n\r\n");
    // A byte now and then buys no time.
    silent[0].send(&FrameId::CLIENT_HELLO.0.to_le_bytes()[..1]);
    for connection in &mut silent {
        assert_eq!(connection.refused().kind, ErrorKind::TIMED_OUT);
    }
    assert_eq!(third.refused().kind, ErrorKind::PROTOCOL);
    drop(silent);
    until("there is room again", || {
        let mut connection = guest.connect();
        let mut hello = Vec::new();
        let key = host_key(1);
        let entropy =
            hospes_protocol::handshake::Entropy { share: [7; 32], nonce: [8; 32], session: [0; 16] };
        let _ = hospes_protocol::handshake::Host::start(&key, Capabilities::EXEC, &entropy, &mut hello);
        connection.send(&hello);
        (connection.frame()?.0 == FrameId::SERVER_HELLO).then_some(())
    });
}

#[test]
fn what_is_no_greeting_is_refused_before_it_is_read() {
    let guest = Guest::start("");
    let large = Header { id: FrameId::EXEC, channel: 0, len: LARGE_MESSAGE_LEN }.to_bytes();
    let data = Header { id: FrameId::DATA, channel: 1, len: DATA_LEN }.to_bytes();
    let long = [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-x\r\n", &large, &data, &long] {
        let mut connection = guest.connect();
        connection.send(first);
        assert_eq!(connection.refused().kind, ErrorKind::PROTOCOL, "{first:?}");
    }
    let mut malformed = Vec::new();
    frame::put_raw(FrameId::CLIENT_HELLO, 0, &[0xff; 100], &mut malformed);
    let mut connection = guest.connect();
    connection.send(&malformed);
    assert_eq!(connection.refused().kind, ErrorKind::PROTOCOL);
    assert!(guest.control(1).ready.first_use);
}

#[test]
fn a_command_runs_with_its_streams_and_its_status() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    let exec = Exec { stdin: Stdin::STREAM, ..command(&["sh", "-c", "cat; echo no >&2; exit 3"]) };
    let (mut out, expected) = control.ticket();
    frame::put(FrameId::EXEC, &exec, &mut out);
    // The input rides with the request, and goes along with the connection.
    frame::put_raw(FrameId::DATA, STDIN, b"in\n", &mut out);
    frame::put_on(FrameId::END, STDIN, &3u64, &mut out);
    let mut connection = guest.connect();
    connection.send(&out);
    assert!(expected.matches(&connection.expect(FrameId::OPENED)));
    assert_eq!(outcome(connection), Outcome { stdout: b"in\n".to_vec(), stderr: b"no\n".to_vec(), code: 3 });
}

#[test]
fn a_host_without_a_session_runs_a_command_after_a_handshake_whether_it_waits_for_the_word_or_not() {
    let guest = Guest::start("");
    let exec = command(&["echo", "hello"]);
    let hello = Outcome { stdout: b"hello\n".to_vec(), stderr: Vec::new(), code: 0 };
    let mut eager = guest.connect();
    eager.prove(1, |out| frame::put(FrameId::EXEC, &exec, out));
    eager.ready();
    assert_eq!(outcome(eager), hello);

    let mut patient: Connection = guest.connect();
    patient.prove(1, |_| ());
    patient.ready();
    patient.put(FrameId::EXEC, &exec);
    assert_eq!(outcome(patient), hello);
    guest.status(|status| status["sessions"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn each_command_has_an_audit_line_that_no_terminal_obeys() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    let exec = command(&["true", "a\x1b[2Jb\nc"]);
    assert_eq!(outcome(control.open(&guest, FrameId::EXEC, &exec)).code, 0);
    let log = guest.log();
    let line = log.lines().find(|line| line.contains("exec as")).unwrap_or_else(|| panic!("{log}"));
    let host = host_key(1).public().fingerprint();
    let text = format!("exec as {} by {host}: true a\\u{{1b}}[2Jb\\u{{a}}c", myself());
    assert!(line.contains(&text), "{line}");
    assert!(!log.contains('\x1b'));
}

/// A host waits ten seconds for a guest's proof, and a user's first session may take longer.
#[test]
fn the_proof_does_not_wait_for_a_session_that_begins_slowly() {
    let script = tempfile::tempdir().unwrap();
    let (program, go) = (script.path().join("slow"), script.path().join("go"));
    let worker = env!("CARGO_BIN_EXE_hospes-session");
    let text =
        format!("#!/bin/sh\nuntil [ -e {} ]; do sleep 0.05; done\nexec {worker} \"$@\"\n", go.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let guest = Guest::start_with("", &["--worker-command", program.to_str().unwrap()]);
    // With a ticket and with a handshake alone, the first of which starts the worker, and both of which it serves.
    let mut control = guest.control(1);
    let mut ticket = control.open(&guest, FrameId::EXEC, &command(&["echo", "one"]));
    let mut alone = guest.connect();
    alone.prove(1, |out| frame::put(FrameId::EXEC, &command(&["echo", "two"]), out));
    alone.ready();
    assert!(ticket.is_silent() && alone.is_silent(), "the worker cannot have started");
    std::fs::write(&go, "").unwrap();
    assert_eq!((outcome(ticket).stdout, outcome(alone).stdout), (b"one\n".to_vec(), b"two\n".to_vec()));
}

#[test]
fn a_worker_that_takes_its_time_runs_a_command_once() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    assert_eq!(outcome(control.open(&guest, FrameId::EXEC, &command(&["true"]))).code, 0);
    let worker = guest.worker();
    kill(worker, Signal::SIGSTOP).unwrap();
    let count = guest.path("count");
    let script = format!("echo once >>{}", count.display());
    // Opened while the worker stands still: the guest's proof is there, and the command is not.
    let connection = control.open(&guest, FrameId::EXEC, &command(&["sh", "-c", &script]));
    assert!(!count.exists());
    kill(worker, Signal::SIGCONT).unwrap();
    assert_eq!(outcome(connection).code, 0);
    assert_eq!(outcome(control.open(&guest, FrameId::EXEC, &command(&["true"]))).code, 0);
    assert_eq!(std::fs::read_to_string(count).unwrap(), "once\n");
}

#[test]
fn a_session_that_does_not_begin_is_an_error_behind_the_proof() {
    let guest = Guest::start_with("", &["--worker-command", "/nonexistent/worker"]);
    let mut control = guest.control(1);
    let mut connection = control.open(&guest, FrameId::EXEC, &command(&["true"]));
    let refusal = connection.refused();
    assert_eq!(refusal.kind, ErrorKind::SESSION);
    assert!(refusal.message.contains("/nonexistent/worker") && refusal.hint.contains("systemctl status"));
}

#[test]
fn commands_go_on_when_the_daemon_is_killed() {
    let mut guest = Guest::start("");
    let mut control = guest.control(1);
    let begun = guest.path("begun");
    let script = format!("touch {}; read line; echo got $line", begun.display());
    let exec = Exec { stdin: Stdin::STREAM, ..command(&["sh", "-c", &script]) };
    let mut connection = control.open(&guest, FrameId::EXEC, &exec);
    until("the command has begun", || begun.exists().then_some(()));
    guest.kill();
    let mut out = Vec::new();
    frame::put_raw(FrameId::DATA, STDIN, b"word\n", &mut out);
    frame::put_on(FrameId::END, STDIN, &5u64, &mut out);
    connection.send(&out);
    assert_eq!(outcome(connection).stdout, b"got word\n");
    // And the next daemon finds the same worker.
    guest.restart();
    let mut control = guest.control(1);
    assert_eq!(outcome(control.open(&guest, FrameId::EXEC, &command(&["true"]))).code, 0);
}

#[test]
fn the_command_for_the_guest_says_how_things_are() {
    let guest = Guest::start("");
    let _control = guest.control(1);
    guest.status(|status| status["sessions"].as_array().is_some_and(|list| list.len() == 1));
    let status = guest.tools(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(0));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["running"], true);
    assert_eq!(status["daemon"]["sessions"][0], host_key(1).public().fingerprint().as_str());

    let info: serde_json::Value = serde_json::from_slice(&guest.tools(&["info", "--json"]).stdout).unwrap();
    assert!(info["memory_kib"].as_u64().unwrap() > 0);
    let shown = String::from_utf8(guest.tools(&["config", "show"]).stdout).unwrap();
    assert!(shown.contains("mode = \"first-use\""), "{shown}");
    let pages = guest.path("pages");
    std::fs::create_dir(&pages).unwrap();
    assert!(guest.tools(&["man", pages.to_str().unwrap()]).status.success());
    assert!(std::fs::read_to_string(pages.join("hospes-tools.1")).unwrap().contains("hospes"));
    assert_eq!(guest.tools(&["no-such-word"]).status.code(), Some(2));
}
