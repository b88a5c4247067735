//! The guest's clock, seen from outside: right after a pause and after the host's own clock has moved, whoever is in charge
//! in the guest, set no more often than that, and never back otherwise.
//!
//! By default a few short pauses for each time service. `make test-time` sets `PAUSES=all`: 20 of 5 s and 2 of 90 s for each,
//! and the clock has to be right one second after each.

#[path = "time/outside.rs"]
mod outside;
#[path = "time/shifted.rs"]
mod shifted;

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, Host, Lab, tools_started, with_tools};
use outside::Outside;
use serde_json::Value;
use shifted::Shifted;

/// How wrong a clock may be that is called right: 10 ms, or twice the best round trip where that is more.
const RIGHT: i64 = 10_000_000;
const SECOND: i64 = 1_000_000_000;

fn all() -> bool {
    std::env::var("PAUSES").is_ok_and(|value| value == "all")
}

#[test]
fn a_clock_that_was_torn_is_right_again_and_is_never_set_back_otherwise() -> Result<()> {
    let services = time_services()?;
    let mut spec = with_tools("time")?;
    for folder in ["timesyncd", "chrony"] {
        for entry in fs::read_dir(services.join(folder))? {
            spec = spec.drop_file(entry?.path());
        }
    }
    let guest = Guest::boot(spec)?;
    tools_started(&guest)?;
    let shifted = Shifted::before(&guest.vsock_path())?;
    let mut host = Host::sharing_identity()?;
    let qmp = guest.qmp_path().display().to_string();
    let endpoint = format!("unix:{}", shifted.socket().display());
    host.run(&["add", "vm", &endpoint, "--user", "dev", "--qmp", &qmp])?.text()?;
    // Only known clocks count: what it was when it was resumed from the lab's own saved state does not.
    host.run(&["time", "vm", "sync"])?.text()?;
    host.start_agent()?;
    host.wait_connected("vm")?;
    let mut clock = Torn { outside: Outside::of(&guest)?, guest: &guest, host: &host, steps: 0 };

    clock.in_charge("none")?;
    clock.pauses("nobody in charge")?;
    clock.moved_host(&shifted)?;
    guest.check_within(
        "apt-get -q -y install /lab/systemd-timesyncd_*.deb && systemctl start systemd-timesyncd",
        Duration::from_secs(300),
    )?;
    clock.in_charge("timesyncd")?;
    clock.pauses("systemd-timesyncd")?;
    let debs = "$(ls /lab/*.deb | grep -v timesyncd)";
    guest.check_within(&format!("apt-get -q -y install {debs}"), Duration::from_secs(300))?;
    guest.wait_until("test -S /run/chrony.hospes.sock", Duration::from_secs(60))?;
    clock.in_charge("chrony")?;
    clock.pauses("chrony")?;
    clock.chrony_was_told()?;
    guest.hush();
    Ok(())
}

#[test]
fn the_owner_says_whether_the_clock_is_set_at_all() -> Result<()> {
    let guest = Guest::boot(with_tools("time-off")?)?;
    tools_started(&guest)?;
    let host = Host::of(&guest)?;
    guest.put("/etc/hospes/tools.toml", 0o644, b"[time]\nmode = \"off\"\n")?;
    guest.check("date -s '-1 hour' >/dev/null")?;
    let ran = host.run(&["time", "vm", "sync", "--json"])?;
    assert_eq!(ran.status, 125, "{}", ran.stderr);
    let told: Value = serde_json::from_slice(&ran.stdout)?;
    assert_eq!((told["setting"].as_str(), told["deed"].as_str()), (Some("off"), Some("nothing")), "{told}");
    ensure!(told["offset_ns"].as_i64().is_some_and(|ns| ns > 3590 * SECOND), "{told}");
    guest.put("/etc/hospes/tools.toml", 0o644, b"[verbs]\ntime = false\n")?;
    let refused = || {
        let ran = host.run(&["time", "vm"])?;
        Ok(ran.status == 125 && ran.stderr.contains("does not allow time"))
    };
    until("the refusal", refused)?;
    guest.put("/etc/hospes/tools.toml", 0o644, b"")?;
    let set = || Ok(host.run(&["time", "vm", "sync"])?.status == 0);
    until("the clock to be set", set)?;
    let told: Value = serde_json::from_slice(&host.run(&["time", "vm", "--json"])?.stdout)?;
    ensure!(told["offset_ns"].as_i64().is_some_and(|ns| ns.abs() < SECOND), "{told}");
    guest.hush();
    Ok(())
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done()? {
        ensure!(Instant::now() < deadline, "Waited 30 s for {what}");
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A guest whose clock is torn, again and again.
struct Torn<'a> {
    guest: &'a Guest,
    host: &'a Host,
    outside: Outside,
    /// How often the clock must have been set since it began.
    steps: usize,
}

impl Torn<'_> {
    fn in_charge(&mut self, keeper: &str) -> Result<()> {
        let ran = self.host.run(&["time", "vm", "--json"])?.text()?;
        let told: Value = serde_json::from_str(&ran)?;
        assert_eq!(told["keeper"], keeper, "{told}");
        assert_eq!(told["setting"], "full", "{told}");
        if keeper == "chrony" {
            assert_eq!(told["fed"], true, "{told}");
        }
        ensure!(told["error_ns"].as_u64().is_some_and(|ns| ns > 0), "{told}");
        self.steps = self.logged()?;
        Ok(())
    }

    fn pauses(&mut self, who: &str) -> Result<()> {
        let lengths: Vec<u64> = if all() { [vec![5; 20], vec![90; 2]].concat() } else { vec![2, 3] };
        let mut worst: i64 = 0;
        for length in &lengths {
            self.guest.pause()?;
            sleep(Duration::from_secs(*length));
            self.guest.resume()?;
            worst = worst.max(self.right_again(0)?);
            self.steps += 1;
            self.goes_forward(if all() { 2 } else { 1 })?;
        }
        self.as_often_as_torn()?;
        let (count, worst) = (lengths.len(), worst / 1000);
        eprintln!("{who}: right after {count} pauses, {worst} µs off at worst, one second after");
        Ok(())
    }

    /// The host's clock goes 8 h ahead while the machine stands still, as a laptop's does in a night; and back again.
    fn moved_host(&mut self, shifted: &Shifted) -> Result<()> {
        for shift in [8 * 3600 * SECOND, 0] {
            self.guest.pause()?;
            shifted.set(shift);
            sleep(Duration::from_secs(1));
            self.guest.resume()?;
            self.right_again(shift)?;
            self.steps += 1;
        }
        self.as_often_as_torn()
    }

    /// How wrong it is a second after: where all is measured that is held against the bar, else it may take longer.
    fn right_again(&self, shift: i64) -> Result<i64> {
        let resumed = Instant::now();
        loop {
            sleep(Duration::from_secs(1).saturating_sub(resumed.elapsed()).max(Duration::from_millis(50)));
            let (offset, bound) = self.outside.offset()?;
            let wrong = (offset - shift).abs();
            if wrong <= RIGHT.max(2 * bound) {
                return Ok(wrong);
            }
            let late = all() || resumed.elapsed() > Duration::from_secs(30);
            ensure!(!late, "{wrong} ns off after {} ms", resumed.elapsed().as_millis());
        }
    }

    /// It is looked at often, and never found to have gone back.
    fn goes_forward(&self, seconds: u64) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut before = 0;
        while Instant::now() < until {
            let now = self.outside.read()?;
            ensure!(now >= before, "The clock went back by {} ns", before - now);
            before = now;
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn as_often_as_torn(&self) -> Result<()> {
        let logged = self.logged()?;
        ensure!(logged == self.steps, "It was torn {} times and set {logged} times", self.steps);
        Ok(())
    }

    fn logged(&self) -> Result<usize> {
        let count =
            "journalctl --sync; journalctl -u hospes-toolsd -o cat | grep -c 'The clock is set by' || true";
        Ok(self.guest.check(count)?.trim().parse()?)
    }

    /// chrony forgot what it had measured, and takes the host for a source.
    fn chrony_was_told(&self) -> Result<()> {
        let log = self.guest.wait_until(
            "journalctl -o cat | grep 'Hospes tells chrony' && chronyc -n sources",
            Duration::from_secs(30),
        )?;
        ensure!(log.contains("HOST"), "{log}");
        let log = self.guest.check("journalctl -o cat -u hospes-toolsd")?;
        ensure!(!log.contains("chrony was not told") && !log.contains("cannot be fed"), "{log}");
        Ok(())
    }
}

/// The packages of chrony and systemd-timesyncd.
fn time_services() -> Result<std::path::PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/lab/time-services.sh");
    let output = Command::new("sh").arg(script).output().context("Could not run time-services.sh")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// The tools' own package is what is tested.
#[test]
fn the_package_brings_what_feeds_chrony() -> Result<()> {
    let listed = Command::new("dpkg-deb").arg("-c").arg(Lab::package()?).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.contains("./etc/chrony/conf.d/hospes.conf"), "{listed}");
    Ok(())
}
