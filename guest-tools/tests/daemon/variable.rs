//! Guest variables between a host, a real `hospes-toolsd` and the in-guest command.

use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::{self, FrameId};
use hospes_protocol::variable::Variable;

use crate::harness::{Control, Guest};

fn variable(name: &str, value: &[u8], secret: bool) -> Variable {
    Variable { name: name.into(), value: value.to_vec(), secret }
}

fn set(host: &mut Control, name: &str, value: &[u8], secret: bool) -> Result<Answer, WireError> {
    host.ask(Ask::VariableSet(variable(name, value, secret)))
}

fn get(host: &mut Control, name: &str) -> Result<Answer, WireError> {
    host.ask(Ask::VariableGet { name: name.into() })
}

/// What `hospes-tools` printed, where it succeeded.
fn said(guest: &Guest, words: &[&str]) -> Result<Vec<u8>, String> {
    let output = guest.tools(words);
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn what_the_host_sets_the_guest_reads_and_it_outlives_the_daemon() {
    let mut guest = Guest::start("");
    let mut host = guest.control(1);
    assert_eq!(set(&mut host, "build.id", b"4\x002\xff", false), Ok(Answer::Done));
    assert_eq!(said(&guest, &["var", "get", "build.id"]).unwrap(), b"4\x002\xff");
    guest.kill();
    // Reading needs no daemon.
    assert_eq!(said(&guest, &["var", "get", "build.id"]).unwrap(), b"4\x002\xff");
    assert!(said(&guest, &["var", "set", "guest.x", "1"]).unwrap_err().contains("hospes-toolsd"));
    guest.restart();
    let mut host = guest.control(1);
    assert_eq!(get(&mut host, "build.id"), Ok(Answer::Variable(variable("build.id", b"4\x002\xff", false))));
    assert_eq!(host.ask(Ask::VariableRemove { name: "build.id".into() }), Ok(Answer::Done));
    assert!(said(&guest, &["var", "get", "build.id"]).unwrap_err().contains("build.id"));
}

#[test]
fn what_the_guest_sets_the_host_reads_and_each_side_keeps_to_its_names() {
    let guest = Guest::start("");
    let mut host = guest.control(1);
    said(&guest, &["var", "set", "guest.ready", "yes"]).unwrap();
    assert_eq!(get(&mut host, "guest.ready"), Ok(Answer::Variable(variable("guest.ready", b"yes", false))));
    assert_eq!(set(&mut host, "guest.ready", b"no", false).unwrap_err().kind, ErrorKind::FORBIDDEN);
    assert!(said(&guest, &["var", "set", "build.id", "x"]).unwrap_err().contains("\"guest.\""));
    let listed = said(&guest, &["var", "list", "--json"]).unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed[0]["owner"], "guest");
    assert_eq!(listed[0]["value"], "yes");
    said(&guest, &["var", "unset", "guest.ready"]).unwrap();
    assert_eq!(get(&mut host, "guest.ready").unwrap_err().kind, ErrorKind::NOT_FOUND);
}

#[test]
fn a_secret_is_read_once_by_the_guests_root_and_a_crash_does_not_bring_it_back() {
    let mut guest = Guest::start("");
    let mut host = guest.control(1);
    set(&mut host, "token", b"hunter2", true).unwrap();
    assert_eq!(get(&mut host, "token").unwrap_err().kind, ErrorKind::FORBIDDEN);
    assert_eq!(host.ask(Ask::VariableList), Ok(Answer::Variables(vec![variable("token", b"", true)])));
    guest.restart();
    let mut host = guest.control(1);
    assert_eq!(said(&guest, &["var", "get", "token"]).unwrap(), b"hunter2");
    assert_eq!(
        said(&guest, &["var", "get", "token"]).unwrap_err(),
        "hospes-tools: No variable is named \"token\"\n"
    );
    guest.restart();
    assert!(said(&guest, &["var", "get", "token"]).is_err());
    assert_eq!(host.connection.frame(), None);
    assert!(!guest.log().contains("hunter2"), "a secret is in the log");
}

#[test]
fn subscribers_are_told_the_names_of_what_changes() {
    let guest = Guest::start("");
    let (mut watcher, mut host) = (guest.control(1), guest.control(1));
    set(&mut host, "before", b"1", false).unwrap();
    assert_eq!(watcher.ask(Ask::Subscribe), Ok(Answer::Done));
    set(&mut host, "build.id", b"1", false).unwrap();
    let mut next = || loop {
        match watcher.event() {
            Event::Variable(name) => return name,
            // Addresses and disks may change meanwhile.
            Event::Info(_) => (),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(next(), "build.id");
    said(&guest, &["var", "set", "guest.ready", "1"]).unwrap();
    assert_eq!(next(), "guest.ready");
}

#[test]
fn a_request_alone_is_answered_after_a_ticket_and_after_a_handshake() {
    let guest = Guest::start("");
    let mut control = guest.control(1);
    let request = Request { number: 9, ask: Ask::VariableSet(variable("a", b"1", false)) };
    let mut lone = control.open(&guest, FrameId::REQUEST, &request);
    assert_eq!(lone.expect::<Reply>(FrameId::REPLY), Reply { number: 9, answer: Ok(Answer::Done) });

    let request = Request { number: 3, ask: Ask::VariableGet { name: "a".into() } };
    let mut lone = guest.connect();
    lone.prove(1, |out| frame::put(FrameId::REQUEST, &request, out));
    lone.ready();
    let answer = Ok(Answer::Variable(variable("a", b"1", false)));
    assert_eq!(lone.expect::<Reply>(FrameId::REPLY), Reply { number: 3, answer });

    let request = Request { number: 4, ask: Ask::Subscribe };
    let mut lone = control.open(&guest, FrameId::REQUEST, &request);
    let reply: Reply = lone.expect(FrameId::REPLY);
    assert_eq!(reply.answer.unwrap_err().kind, ErrorKind::UNSUPPORTED);
}

#[test]
fn the_policy_can_forbid_it() {
    let guest = Guest::start("[verbs]\nvariables = false\n");
    let mut host = guest.control(1);
    for ask in
        [Ask::VariableList, Ask::VariableGet { name: "a".into() }, Ask::VariableRemove { name: "a".into() }]
    {
        assert_eq!(host.ask(ask).unwrap_err().kind, ErrorKind::FORBIDDEN);
    }
    assert_eq!(set(&mut host, "a", b"1", false).unwrap_err().kind, ErrorKind::FORBIDDEN);
    // It is the host that is forbidden.
    said(&guest, &["var", "set", "guest.ready", "1"]).unwrap();
}
