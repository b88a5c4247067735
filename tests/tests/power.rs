//! `hospes stop` and `hospes reboot` against a booted guest: its own systemd, logind and scripts.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, Host, tools_started, with_tools};
use serde_json::Value;

fn booted(name: &str) -> Result<(Guest, Host)> {
    let guest = Guest::boot(with_tools(name)?)?;
    tools_started(&guest)?;
    let host = Host::of(&guest)?;
    Ok((guest, host))
}

fn script(guest: &Guest, name: &str, text: &str) -> Result<()> {
    guest.put(&format!("/etc/hospes/{name}"), 0o755, format!("#!/bin/sh\n{text}\n").as_bytes())
}

fn json(text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text).with_context(|| String::from_utf8_lossy(text).into_owned())
}

#[test]
fn stop_runs_the_scripts_as_root_without_the_daemons_limits_and_ends_the_machine() -> Result<()> {
    let (guest, host) = booted("power-stop")?;
    // The daemon may neither write to homes nor keep more than two capabilities.
    script(
        &guest,
        "poweroff.d/10-free",
        "echo mark > /home/mark && cat /home/mark; grep CapEff /proc/self/status",
    )?;
    script(&guest, "poweroff.d/20-args", "echo \"$1 $HOSPES_ACTION\" >&2")?;
    script(&guest, "poweroff.d/30-eve", "echo bad")?;
    guest.check("chown eve /etc/hospes/poweroff.d/30-eve; hospes-tools var set guest.ready 1")?;
    let ran = host.run(&["stop", "vm", "--timeout", "120s", "--json"])?;
    ensure!(ran.status == 0, "{}\n{}", ran.stderr, guest.console());
    let told = json(&ran.stdout)?;
    assert_eq!((told["by"].as_str(), told["down"].as_bool()), (Some("logind"), Some(true)), "{told}");
    let output = |at: usize| told["scripts"][at]["output"].as_str().unwrap_or_default().to_owned();
    ensure!(output(0).starts_with("mark\nCapEff:\t000001ff"), "{told}");
    assert_eq!(output(1), "poweroff poweroff\n");
    assert_eq!(
        (told["scripts"][2]["end"].as_str(), output(2).contains("user 1001")),
        (Some("skipped"), true)
    );
    guest.wait_power_off()
}

#[test]
fn a_failing_script_and_an_inhibitor_keep_the_guest_up_until_it_is_forced_to_reboot() -> Result<()> {
    let (guest, host) = booted("power-reboot")?;
    script(&guest, "poweroff.d/10-no", "echo the disk is busy; exit 3")?;
    let ran = host.run(&["reboot", "vm"])?;
    assert_eq!(ran.status, 125);
    ensure!(ran.stderr.contains("10-no failed with status 3\n  the disk is busy"), "{}", ran.stderr);
    guest.check("rm /etc/hospes/poweroff.d/10-no")?;
    guest.check(
        "systemd-run -q --unit=inhibit systemd-inhibit --what=shutdown --mode=block --who=apt --why=Upgrade sleep 1000
         until systemd-inhibit --list | grep -q Upgrade; do sleep 0.2; done",
    )?;
    let ran = host.run(&["stop", "vm", "--json"])?;
    assert_eq!(ran.status, 125);
    assert_eq!(json(&ran.stdout)?["inhibitors"][0]["who"], "apt");
    ensure!(ran.stderr.contains("inhibited"), "{}", ran.stderr);

    // A script that outlives the daemon: it runs to its end, though who asked for it is told nothing.
    script(
        &guest,
        "poweroff.d/10-slow",
        "systemctl kill -s KILL hospes-toolsd; sleep 2; touch /root/survived; exit 1",
    )?;
    let _ = host.run(&["stop", "vm", "--force", "--timeout", "30s"])?;
    guest.wait_until("test -e /root/survived", Duration::from_secs(60))?;
    tools_started(&guest)?;
    guest.check("rm /etc/hospes/poweroff.d/10-slow /root/survived")?;

    let before = guest.check("cat /proc/sys/kernel/random/boot_id")?;
    guest.reboots(|_| {
        let ran = host.run(&["reboot", "vm", "--force", "--wait", "--timeout", "300s", "--json"])?;
        ensure!(ran.status == 0, "{}", ran.stderr);
        let told = json(&ran.stdout)?;
        // A logind that lets nobody pass its locks leaves it to systemd.
        ensure!(matches!(told["by"].as_str(), Some("logind" | "systemd")), "{told}");
        assert_eq!(told["back"].as_bool(), Some(true), "{told}");
        Ok(())
    })?;
    ensure!(guest.check("cat /proc/sys/kernel/random/boot_id")? != before, "it is the same boot");
    Ok(())
}

#[test]
fn a_guest_sleeps_between_its_scripts_and_is_itself_when_it_wakes() -> Result<()> {
    let (guest, mut host) = booted("power-suspend")?;
    host.start_agent()?;
    host.wait_connected("vm")?;
    // The machine's clock wakes it: a machine that is emulated has no other way.
    script(&guest, "suspend.d/10-alarm", "echo +30 >/sys/class/rtc/rtc0/wakealarm; date +%s >/root/asleep")?;
    script(&guest, "resume.d/10-note", "echo \"$1 $HOSPES_ACTION\" >/root/awake")?;
    let kept = host.run(&[
        "exec",
        "--detach",
        "vm",
        "--",
        "sh",
        "-c",
        "until [ -e /tmp/go ]; do sleep 0.2; done; echo kept",
    ])?;
    let kept = kept.text()?.trim().to_owned();
    let mut watching =
        host.command(&["events", "vm", "--json"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut events = BufReader::new(watching.stdout.take().context("it has a pipe")?).lines();

    let ran = host.run(&["suspend", "vm", "--json"])?;
    ensure!(ran.status == 0, "{}\n{}", ran.stderr, guest.console());
    assert_eq!(json(&ran.stdout)?["by"].as_str(), Some("logind"));
    guest.wait_until("test -e /root/awake", Duration::from_secs(120))?;
    assert_eq!(guest.check("cat /root/awake")?, "resume resume\n");
    ensure!(guest.check("journalctl -k")?.contains("PM: suspend exit"), "it never slept");
    loop {
        let event = json(events.next().context("the agent ended")??.as_bytes())?;
        if event["event"] == "resumed" {
            break;
        }
    }
    watching.kill()?;
    watching.wait()?;
    // What ran before it slept runs on, and whoever comes is served.
    assert_eq!(host.run(&["exec", "vm", "--", "touch", "/tmp/go"])?.status, 0);
    assert_eq!(host.run(&["attach", "vm", &kept])?.text()?, "kept\n");
    Ok(())
}
