//! The verbs that ask a guest something, and what they print.

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::ExecId;
use hospes_protocol::keys::{PublicKey, SecretKey};
use hospes_protocol::process::Target;
use serde_json::Value;

use crate::guest::Guest;
use crate::home::{Agent, Home, eventually, finish, pair, text};

fn json(text: &str) -> Value {
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

#[test]
fn info_is_the_same_with_and_without_the_agent() {
    let (home, guest) = pair();
    guest.state.lock().unwrap().info.hostname = "host\u{1b}[31mname".to_owned();
    let alone = home.good(["info", "dev", "--json"]);
    let _agent = Agent::start(&home);
    assert_eq!(home.good(["info", "dev", "--json"]), alone);
    let info = json(&alone);
    assert_eq!((&info["vm"], &info["hostname"]), (&"dev".into(), &"host\u{1b}[31mname".into()));
    assert_eq!(info["interfaces"][0]["addresses"][0], "192.0.2.7/24");
    let shown = home.good(["info", "dev"]);
    assert!(shown.contains("host\\u{1b}[31mname") && shown.contains("Debian"), "{shown}");
}

#[test]
fn ip_prints_the_address_to_use() {
    let (home, _guest) = pair();
    assert_eq!(home.good(["ip", "dev"]), "192.0.2.7\n");
    assert_eq!(home.good(["ip", "dev", "-6"]), "fe80::1\n");
    assert_eq!(json(&home.good(["ip", "dev", "--json"]))["addresses"][1], "fe80::1");
}

#[test]
fn waiting_for_an_address_ends_when_the_guest_gets_one() {
    let (home, guest) = pair();
    let (with, without) = (crate::guest::info(), hospes_protocol::info::Info::default());
    guest.state.lock().unwrap().info = without;
    assert_eq!(home.run(["ip", "dev"]).status.code(), Some(125));
    let child = home.command(["ip", "dev", "--wait", "--timeout", "50s"]).spawn().unwrap();
    eventually("the question", || guest.controls() == 2);
    guest.event(&hospes_protocol::control::Event::Info(Box::new(with)));
    let output = finish(child);
    assert_eq!(text(&output.stdout), "192.0.2.7\n", "{}", text(&output.stderr));
}

#[test]
fn wait_ends_when_the_guest_is_there_and_when_time_is_over() {
    let (home, guest) = (Home::new(), Guest::absent(false));
    home.add("dev", &guest);
    let late = home.run(["wait", "dev", "--timeout", "100ms"]);
    assert_eq!(late.status.code(), Some(124));
    assert!(text(&late.stderr).contains("in time"), "{}", text(&late.stderr));
    let child = home.command(["wait", "dev", "--json"]).spawn().unwrap();
    guest.boot();
    assert_eq!(json(&text(&finish(child).stdout))["for"], "agent");
    let gone = home.command(["wait", "dev", "--for", "gone"]).spawn().unwrap();
    eventually("the wait", || guest.controls() == 1);
    std::fs::remove_file(guest.path()).unwrap();
    guest.restart_daemon();
    assert_eq!(finish(gone).status.code(), Some(0));
}

#[test]
fn wait_does_not_wait_for_what_will_not_come() {
    let (home, guest) = pair();
    let refusal = WireError::new(ErrorKind::UNTRUSTED, "This guest does not trust you").hint("Trust");
    guest.state.lock().unwrap().refuse = Some(refusal);
    let output = home.run(["wait", "dev"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("does not trust you"));
}

#[test]
fn ps_shows_processes_and_no_escapes() {
    let (home, _guest) = pair();
    let shown = home.good(["ps", "dev"]);
    assert!(shown.contains("sleep \\u{1b}[2J") && shown.contains("2.0 MiB"), "{shown}");
    let list = json(&home.good(["ps", "dev", "--all", "--json"]));
    assert_eq!((&list["processes"][0]["pid"], &list["processes"][0]["id"]), (&42.into(), &7.into()));
}

#[test]
fn kill_names_processes_and_commands() {
    let (home, guest) = pair();
    home.good(["kill", "dev", "-s", "KILL", "42", "id:7"]);
    let kills = guest.state.lock().unwrap().kills.clone();
    let asked: Vec<_> = kills.iter().map(|kill| (kill.target, kill.signal)).collect();
    assert_eq!(asked, [(Target::Pid(42), 9), (Target::Exec(ExecId(7)), 9)]);
    let mut command = home.command(["kill", "43"]);
    assert_eq!(finish(command.env("HOSPES_VM", "dev").spawn().unwrap()).status.code(), Some(0));
    assert_eq!(guest.state.lock().unwrap().kills.last().unwrap().target, Target::Pid(43));
    assert_eq!(home.run(["kill", "dev", "0"]).status.code(), Some(125));
}

#[test]
fn keys_are_shown_and_rotated() {
    let (home, guest) = pair();
    let key = home.good(["key", "show"]);
    let parsed = PublicKey::from_text(&key).unwrap();
    assert_eq!(home.good(["key", "show", "--fingerprint"]).trim(), parsed.fingerprint());
    assert_eq!(home.run(["key", "show", "dev"]).status.code(), Some(125));
    home.good(["exec", "dev", "true"]);
    let pinned = guest.state.lock().unwrap().key.public();
    assert_eq!(home.good(["key", "show", "dev"]).trim(), pinned.to_text());
    let rotated = json(&home.good(["key", "rotate", "--json"]));
    assert_ne!(rotated["fingerprint"], parsed.fingerprint().as_str());
    assert_eq!(home.good(["key", "show"]).trim(), rotated["key"].as_str().unwrap());
    assert!(home.path().join("data/hospes/host.key.old").exists());
    home.good(["exec", "dev", "true"]);
}

#[test]
fn doctor_names_what_is_wrong_and_what_to_do() {
    let (home, guest) = pair();
    let checks = || json(&text(&home.run(["doctor", "--json"]).stdout))["checks"].clone();
    let find = |checks: &Value, subject: &str| {
        let list = checks.as_array().unwrap();
        list.iter().find(|check| check["subject"] == subject).unwrap().clone()
    };
    let unknown = find(&checks(), "VM dev");
    assert_eq!(unknown["state"], "ok");
    assert_eq!(guest.count(|counts| &counts.handshakes), 0, "a look must pin nothing");
    home.good(["exec", "dev", "true"]);
    let _agent = Agent::start(&home);
    let well = checks();
    assert_eq!(find(&well, "agent")["state"], "ok");
    assert!(find(&well, "VM dev")["message"].as_str().unwrap().contains("0.1.0"));
    guest.state.lock().unwrap().key = SecretKey::from_bytes(&[9; 32]);
    home.good(["add", "gone", "unix:/nowhere/at/all"]);
    let output = home.run(["doctor"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(shown.contains("hospes forget dev") && shown.contains("is the VM running?"), "{shown}");
}

#[test]
fn logs_are_the_agents_lines() {
    let (home, _guest) = pair();
    let _agent = Agent::start(&home);
    eventually("the line", || home.good(["logs", "dev", "--host"]).contains("connected, key SHA256:"));
}

#[test]
fn errors_are_json_where_that_is_asked_for() {
    let home = Home::new();
    let error = json(&text(&home.run(["info", "nosuch", "--json"]).stderr))["error"].clone();
    assert_eq!((&error["kind"], &error["code"]), (&"unknown_vm".into(), &125.into()));
    assert!(error["hint"].as_str().unwrap().contains("hospes add"));
}

#[test]
fn manual_pages_and_completions_come_from_the_same_source() {
    let (home, _guest) = pair();
    std::fs::create_dir(home.path().join("man")).unwrap();
    home.good(["man", "man"]);
    let page = std::fs::read_to_string(home.path().join("man/hospes-exec.1")).unwrap();
    assert!(page.contains("Run a command in a VM"), "{page}");
    assert!(home.good(["completions", "bash"]).contains("COMPLETE="));
    // What the script makes the shell run: the words so far, and which of them is completed.
    let complete = |words: &[&str]| {
        let mut command = home.command(std::iter::once(&"--").chain(words));
        command.env("COMPLETE", "fish");
        text(&finish(command.spawn().unwrap()).stdout)
    };
    assert!(complete(&["hospes", "ex"]).contains("exec"));
    assert!(complete(&["hospes", "info", "d"]).contains("dev"));
}
