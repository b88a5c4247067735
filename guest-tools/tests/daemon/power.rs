//! Power requests to a real `hospes-toolsd`, with a logind that does nothing but remember.

mod logind;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use hospes_protocol::control::{Answer, Ask, Event, Reply, Request};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::frame::FrameId;
use hospes_protocol::power::{Power, PowerAction, PowerReply, ScriptEnd};

use crate::harness::{Control, Guest, until};
use logind::{Logind, Spec};

fn guest(logind: &Logind, policy: &str) -> Guest {
    Guest::start_with(policy, &["--power-bus", &logind.address])
}

fn script(guest: &Guest, name: &str, text: &str) {
    let path = guest.path("etc").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\ncd {}\n{text}\n", guest.path("").display())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn power(action: PowerAction) -> Power {
    Power { action, force: false, script_timeout_ms: None }
}

fn ask(host: &mut Control, power: Power) -> Result<PowerReply, WireError> {
    match host.ask(Ask::Power(power))? {
        Answer::Power(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn refusal(reply: &PowerReply) -> ErrorKind {
    assert_eq!(reply.by, "");
    reply.refused.as_ref().expect("a refusal").kind
}

/// The next event that is not about addresses and the like.
fn event(host: &mut Control) -> Event {
    loop {
        match host.event() {
            Event::Info(_) => (),
            other => return other,
        }
    }
}

#[test]
fn scripts_run_in_order_before_logind_is_asked_and_everybody_is_told() {
    let logind = Logind::start(Spec::default());
    let guest = guest(&logind, "");
    script(&guest, "poweroff.d/20-second", "echo second >&2; echo two >> order");
    script(&guest, "poweroff.d/10-first", "echo first $1 $HOSPES_ACTION; echo one >> order");
    script(&guest, "poweroff.d/30-open", "echo three >> order");
    fs::set_permissions(guest.path("etc/poweroff.d/30-open"), fs::Permissions::from_mode(0o777)).unwrap();
    let (mut other, mut host) = (guest.control(1), guest.control(1));

    let reply = ask(&mut host, power(PowerAction::REBOOT)).unwrap();
    assert_eq!((reply.by.as_str(), &reply.refused), ("logind", &None));
    let scripts: Vec<_> = reply
        .scripts
        .iter()
        .map(|script| (script.name.as_str(), script.end, script.output.as_slice()))
        .collect();
    assert_eq!(
        scripts,
        [
            ("10-first", ScriptEnd::ENDED, &b"first reboot reboot\n"[..]),
            ("20-second", ScriptEnd::ENDED, b"second\n"),
            ("30-open", ScriptEnd::SKIPPED, b"Everybody may write to it"),
        ]
    );
    assert_eq!(fs::read_to_string(guest.path("order")).unwrap(), "one\ntwo\n");
    assert_eq!(logind.calls(), ["Inhibit shutdown delay", "Reboot false"]);
    for host in [&mut other, &mut host] {
        assert_eq!(event(host), Event::Stopping("reboot".into()));
        assert_eq!(host.connection.frame(), None);
    }
    logind.locks_are_dropped();
    assert!(guest.log().contains("power as root by"), "the audit line");
}

#[test]
fn a_failing_script_refuses_and_the_same_request_again_goes_through() {
    let logind = Logind::start(Spec::default());
    let guest = guest(&logind, "");
    script(&guest, "poweroff.d/10-no", "echo not now; exit 3");
    let mut host = guest.control(1);
    let reply = ask(&mut host, power(PowerAction::POWEROFF)).unwrap();
    assert_eq!(refusal(&reply), ErrorKind::SCRIPT);
    assert_eq!((reply.scripts[0].status, reply.scripts[0].output.as_slice()), (3, &b"not now\n"[..]));
    assert_eq!(logind.calls(), [""; 0]);
    // Another request is another matter.
    assert_eq!(refusal(&ask(&mut host, power(PowerAction::REBOOT)).unwrap()), ErrorKind::SCRIPT);
    let reply = ask(&mut host, power(PowerAction::REBOOT)).unwrap();
    assert_eq!((reply.by.as_str(), reply.scripts[0].status), ("logind", 3));
    assert_eq!(logind.calls(), ["Inhibit shutdown delay", "RebootWithFlags 16"]);
}

#[test]
fn an_inhibitor_refuses_before_any_script_runs_unless_forced() {
    let inhibitors = vec![
        ("sleep:shutdown", "apt", "Upgrade", "block"),
        ("shutdown", "slow", "Tidies up", "delay"),
        ("sleep", "player", "Plays", "block"),
    ];
    let logind = Logind::start(Spec { inhibitors, old: true, ..Spec::default() });
    let guest = guest(&logind, "");
    script(&guest, "poweroff.d/10-mark", "touch mark");
    let mut host = guest.control(1);
    let reply = ask(&mut host, power(PowerAction::POWEROFF)).unwrap();
    assert_eq!(refusal(&reply), ErrorKind::INHIBITED);
    assert_eq!(reply.inhibitors.len(), 1);
    assert!(reply.refused.unwrap().message.contains("apt (Upgrade)"));
    assert!(!guest.path("mark").exists());
    let reply = ask(&mut host, Power { force: true, ..power(PowerAction::POWEROFF) }).unwrap();
    assert_eq!(reply.by, "logind");
    assert!(guest.path("mark").exists());
    assert_eq!(logind.calls(), ["Inhibit shutdown delay", "PowerOff false"]);
}

#[test]
fn a_lock_that_comes_late_is_honoured_too() {
    let logind = Logind::start(Spec { denies: true, old: true, ..Spec::default() });
    let guest = guest(&logind, "");
    let mut host = guest.control(1);
    let reply = ask(&mut host, power(PowerAction::POWEROFF)).unwrap();
    assert_eq!(refusal(&reply), ErrorKind::INHIBITED);
    assert_eq!(host.ask(Ask::Ping), Ok(Answer::Pong), "nobody was told that it goes down");
    // Forced, somebody else would be asked; this daemon has nobody else.
    let reply = ask(&mut host, Power { force: true, ..power(PowerAction::POWEROFF) }).unwrap();
    assert_eq!(refusal(&reply), ErrorKind::OS);
}

#[test]
fn after_a_suspend_the_resume_scripts_run_and_subscribers_are_told() {
    let logind = Logind::start(Spec::default());
    let guest = guest(&logind, "");
    script(&guest, "suspend.d/10", "echo $1 >> order");
    script(&guest, "resume.d/10", "echo $1 >> order");
    let mut host = guest.control(1);
    assert_eq!(host.ask(Ask::Subscribe), Ok(Answer::Done));
    let reply = ask(&mut host, power(PowerAction::SUSPEND)).unwrap();
    assert_eq!(reply.by, "logind");
    assert_eq!(event(&mut host), Event::Stopping("suspend".into()));
    assert_eq!(fs::read_to_string(guest.path("order")).unwrap(), "suspend\n");
    logind.wake();
    assert_eq!(event(&mut host), Event::Resumed);
    assert_eq!(fs::read_to_string(guest.path("order")).unwrap(), "suspend\nresume\n");
    assert_eq!(logind.calls(), ["Inhibit sleep delay", "Suspend false"]);
    assert_eq!(host.ask(Ask::Ping), Ok(Answer::Pong), "the session goes on");
}

#[test]
fn what_the_machine_cannot_do_is_refused_before_any_script_runs() {
    let logind = Logind::start(Spec { cannot_suspend: true, ..Spec::default() });
    let guest = guest(&logind, "");
    script(&guest, "suspend.d/10", "touch mark");
    let mut host = guest.control(1);
    let reply = ask(&mut host, power(PowerAction::SUSPEND)).unwrap();
    assert_eq!(refusal(&reply), ErrorKind::UNSUPPORTED);
    let error = ask(&mut host, power(PowerAction(9))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::UNSUPPORTED);
    assert!(!guest.path("mark").exists());
    assert_eq!(logind.calls(), [""; 0]);
}

#[test]
fn a_stuck_script_holds_up_neither_other_requests_nor_a_forced_one() {
    let logind = Logind::start(Spec::default());
    let guest = guest(&logind, "");
    script(&guest, "poweroff.d/10-stuck", "mkfifo fifo; touch there; timeout 100 cat fifo");
    let (mut first, mut second) = (guest.control(1), guest.control(1));
    first
        .connection
        .put(FrameId::REQUEST, &Request { number: 1, ask: Ask::Power(power(PowerAction::POWEROFF)) });
    until("the script runs", || guest.path("there").exists().then_some(()));
    first.connection.put(FrameId::REQUEST, &Request { number: 2, ask: Ask::Ping });
    let pong: Reply = first.connection.expect(FrameId::REPLY);
    assert_eq!(pong, Reply { number: 2, answer: Ok(Answer::Pong) });
    assert_eq!(ask(&mut second, power(PowerAction::POWEROFF)).unwrap_err().kind, ErrorKind::BUSY);

    let lone = Request { number: 7, ask: Ask::Power(Power { force: true, ..power(PowerAction::POWEROFF) }) };
    let mut lone = second.open(&guest, FrameId::REQUEST, &lone);
    let reply: Reply = lone.expect(FrameId::REPLY);
    let Ok(Answer::Power(reply)) = reply.answer else { panic!("{reply:?}") };
    assert_eq!((reply.by.as_str(), reply.scripts.len()), ("logind", 0));
    assert_eq!(logind.calls(), ["Inhibit shutdown delay", "PowerOffWithFlags 16"]);
    // Its reader is gone with it: let the script end.
    fs::write(guest.path("fifo"), "go\n").unwrap();
}

#[test]
fn a_script_whose_time_is_up_refuses() {
    let logind = Logind::start(Spec::default());
    let guest = guest(&logind, "[power]\nscript-timeout = 3600\n");
    script(&guest, "poweroff.d/10-slow", "echo begun; sleep 1000");
    let mut host = guest.control(1);
    let asked = Power { script_timeout_ms: Some(500), ..power(PowerAction::HALT) };
    let reply = ask(&mut host, asked).unwrap();
    assert_eq!(refusal(&reply), ErrorKind::SCRIPT);
    assert_eq!(
        (reply.scripts[0].end, reply.scripts[0].output.as_slice()),
        (ScriptEnd::TIMED_OUT, &b"begun\n"[..])
    );
}

#[test]
fn the_scripts_of_a_start_run_once_in_a_boot() {
    let logind = Logind::start(Spec::default());
    let mut guest = guest(&logind, "");
    until("it has looked for scripts", || guest.path("run/started").exists().then_some(()));
    guest.kill();
    script(&guest, "poweron.d/10", "echo $1 >> order");
    fs::remove_file(guest.path("run/started")).unwrap();
    guest.restart();
    until("the script has run", || {
        fs::read_to_string(guest.path("order")).ok().filter(|order| !order.is_empty())
    });
    guest.restart();
    let mut host = guest.control(1);
    assert_eq!(host.ask(Ask::Ping), Ok(Answer::Pong));
    assert_eq!(fs::read_to_string(guest.path("order")).unwrap(), "poweron\n");
}

#[test]
fn the_policy_can_forbid_it_and_a_daemon_beside_its_system_has_no_power() {
    let logind = Logind::start(Spec::default());
    let guest = guest(&logind, "[verbs]\npower = false\n");
    let mut host = guest.control(1);
    assert_eq!(ask(&mut host, power(PowerAction::POWEROFF)).unwrap_err().kind, ErrorKind::FORBIDDEN);
    assert_eq!(logind.calls(), [""; 0]);
    let beside = Guest::start("");
    let mut host = beside.control(1);
    assert_eq!(ask(&mut host, power(PowerAction::POWEROFF)).unwrap_err().kind, ErrorKind::UNSUPPORTED);
}
