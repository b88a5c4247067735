//! Who stands between a host and a guest, or is a guest itself, gets nothing done in another guest in the host's name.
//!
//! The host is a real `hospes` with or without a real agent, the victim a real daemon with a real worker. Between them
//! stands a [`wire`](relay/wire.rs) that can be led elsewhere, or a [guest that poses](relay/posing.rs).

#[path = "relay/posing.rs"]
mod posing;
#[path = "relay/wire.rs"]
mod wire;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hospes_protocol::error::ErrorKind;
use integration_tests::{Beside, Deadline, Host};

use posing::Posing;
use wire::Wire;

const PATIENCE: Duration = Duration::from_secs(30);

/// The guest has written this line since it was started.
fn logged(guest: &Beside, words: &[&str]) -> Result<()> {
    let what = format!("a line with {words:?} in the guest's log");
    let line = || {
        let log = guest.log()?;
        Ok(log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(()))
    };
    Deadline::after(PATIENCE).poll(&what, line)
}

fn fingerprint(host: &Host, vm: &str) -> Result<String> {
    Ok(host.run(&["key", "show", vm, "--fingerprint"])?.text()?.trim().to_owned())
}

/// What would leave a trace in whichever guest served it, the file at `marker`.
fn deeds(vm: &str, marker: &Path) -> Vec<Vec<String>> {
    let marker = marker.display().to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    vec![
        words(&["exec", vm, "--", "touch", &marker]),
        words(&["file", vm, "write", &marker]),
        words(&["cp", "/etc/hostname", &format!("{vm}:{marker}")]),
        words(&["file", vm, "mkdir", &marker]),
    ]
}

/// Every deed in the posing guest fails for this reason, and the victim takes none of them for its host's.
fn pass_on_in_vain(host: &Host, posing: &Posing, marker: &Path, reason: &str) -> Result<()> {
    let deeds = deeds("posing", marker);
    for deed in &deeds {
        let deed: Vec<&str> = deed.iter().map(String::as_str).collect();
        let ran = host.run(&deed)?;
        ensure!(ran.status != 0 && !marker.exists(), "{deed:?} was done: {ran:?}");
        ensure!(ran.stderr.contains(reason), "The host is not told why: {}", ran.stderr);
    }
    // An agent has connections of its own besides, to set the clock; they are refused like the others.
    let answers = posing.answers();
    ensure!(answers.len() >= deeds.len(), "{answers:?}");
    ensure!(answers.iter().all(|answer| answer.kind == ErrorKind::UNPROVED), "{answers:?}");
    Ok(())
}

#[test]
fn a_connection_that_is_led_to_another_guest_is_refused_by_the_host_and_told_by_that_guest() -> Result<()> {
    let (a, b) = (Beside::start("")?, Beside::start("")?);
    let wire = Wire::to(&a.socket())?;
    let mut host = Host::new()?;
    host.add_socket("a", &wire.socket())?;
    host.add_socket("b", &b.socket())?;
    for vm in ["a", "b"] {
        assert_eq!(host.run(&["exec", vm, "--", "echo", "here"])?.text()?, "here\n");
    }
    let (first, second) = (fingerprint(&host, "a")?, fingerprint(&host, "b")?);
    assert_ne!(first, second);
    let us = host.run(&["key", "show", "--fingerprint"])?.text()?;
    let us = us.trim();
    let marker = b.directory().join("marker");

    for agent in [false, true] {
        wire.lead_to(&a.socket());
        if agent {
            // Its session with `a` stays where it is: what is led astray is the command's own connection.
            host.start_agent()?;
            host.wait_connected("a")?;
        }
        wire.lead_to(&b.socket());
        for deed in deeds("a", &marker) {
            let deed: Vec<&str> = deed.iter().map(String::as_str).collect();
            let ran = host.run(&deed)?;
            ensure!(ran.status != 0, "{deed:?} was done");
            for word in [&first, &second, "hospes forget a"] {
                ensure!(ran.stderr.contains(word), "{deed:?} does not name {word}: {}", ran.stderr);
            }
            ensure!(!marker.exists(), "{deed:?} was done in the other guest");
        }
        logged(&b, &["Refused", us, "(unproved)", "closed the connection before it proved its key"])?;
        if agent {
            logged(&b, &["Refused", "does not know the ticket's session"])?;
        }
    }
    // And the guest that it was meant for is served as before.
    wire.lead_to(&a.socket());
    assert_eq!(host.run(&["exec", "a", "--", "echo", "here"])?.text()?, "here\n");
    Ok(())
}

#[test]
fn a_guest_cannot_pass_the_hosts_proof_on_to_another() -> Result<()> {
    let victim = Beside::start("")?;
    let posing = Posing::before(&victim.socket())?;
    let host = Host::new()?;
    host.add_socket("victim", &victim.socket())?;
    host.add_socket("posing", &posing.socket())?;
    assert_eq!(host.run(&["exec", "victim", "--", "echo", "here"])?.text()?, "here\n");
    let marker = victim.directory().join("marker");
    pass_on_in_vain(&host, &posing, &marker, "does not hold the key")?;
    let us = host.run(&["key", "show", "--fingerprint"])?.text()?;
    logged(&victim, &["Refused", us.trim(), "does not hold the key"])
}

#[test]
fn a_guest_cannot_spend_its_tickets_in_a_session_of_another_that_it_overheard() -> Result<()> {
    let victim = Beside::start("")?;
    let wire = Wire::to(&victim.socket())?;
    let posing = Posing::before(&victim.socket())?;
    let mut host = Host::new()?;
    host.add_socket("victim", &wire.socket())?;
    host.start_agent()?;
    host.wait_connected("victim")?;
    // The session's name is no secret, and the posing guest gives its own session the same.
    posing.name_its_session(wire.overheard_session()?);
    host.add_socket("posing", &posing.socket())?;
    host.wait_connected("posing")?;
    assert_eq!(host.run(&["exec", "victim", "--", "echo", "here"])?.text()?, "here\n");

    let marker = victim.directory().join("marker");
    pass_on_in_vain(&host, &posing, &marker, "")?;
    logged(&victim, &["Refused", "ticket"])?;
    // The victim's own session has lost nothing by it.
    assert_eq!(host.run(&["exec", "victim", "--", "echo", "here"])?.text()?, "here\n");
    Ok(())
}

#[test]
fn what_a_host_said_to_a_guest_once_cannot_be_said_again() -> Result<()> {
    let victim = Beside::start("")?;
    let wire = Wire::to(&victim.socket())?;
    let mut host = Host::new()?;
    host.add_socket("victim", &wire.socket())?;
    let count = victim.directory().join("count");
    let script = format!("echo once >>{}", count.display());
    let deed = ["exec", "victim", "--", "sh", "-c", &script];
    host.run(&deed)?.text()?;
    host.start_agent()?;
    host.wait_connected("victim")?;
    host.run(&deed)?.text()?;
    assert_eq!(fs::read_to_string(&count)?, "once\nonce\n");
    // Every connection so far, to the byte: with a handshake, and with a ticket whose session still lives.
    let said = wire.said();
    ensure!(said.len() >= 3, "{} connections", said.len());
    for bytes in &said {
        ensure!(!wire::say_again(&victim.socket(), bytes)?.is_empty(), "it was not even answered");
    }
    assert_eq!(fs::read_to_string(&count)?, "once\nonce\n");
    logged(&victim, &["Refused", "does not hold the key"])?;
    logged(&victim, &["Refused", "ticket"])
}
