//! File systems of a booted guest held still for a snapshot, while programs write to all of them: two disks of the host's
//! files, ext4 and xfs, a file system in a file of the first one, and the guest's root.
//!
//! `FREEZES` is the number of freezes with something killed meanwhile, 3 unless set; `make test-freeze` does 200. After
//! each that `hospes` calls whole, both disks were copied on the host, and nothing may be wrong with the copies.

#[path = "freeze/disks.rs"]
mod disks;
#[path = "freeze/link.rs"]
mod link;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use disks::PLACES;
use integration_tests::{Deadline, Guest, Host, Ran, SharedGuest, tools_started, with_tools};
use link::Link;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("freeze")).prepared(|guest| {
    tools_started(guest)?;
    disks::plug(guest)?;
    for (folder, word) in [("freeze.d", "before"), ("thaw.d", "after")] {
        let script = format!(
            "#!/bin/sh\necho \"{word} $1 $(hospes-tools --version >/root/note; echo $?)\" >>/run/order\n"
        );
        guest.put(&format!("/etc/hospes/{folder}/10-note"), 0o755, script.as_bytes())?;
    }
    disks::write(guest)
});

/// Held by whoever freezes in the shared guest: what is frozen is frozen for all.
static FREEZING: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    FREEZING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn json(ran: &Ran) -> Result<Value> {
    serde_json::from_slice(&ran.stdout)
        .with_context(|| format!("{}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr))
}

/// Freezes for so long, and gives the freeze's number.
fn freeze(host: &Host, timeout: &str) -> Result<String> {
    let ran = host.run(&["freeze", "vm", "--timeout", timeout, "--json"])?;
    ensure!(ran.status == 0, "{ran:?}");
    Ok(json(&ran)?["serial"].to_string())
}

/// What is told of a freeze's end.
fn thaw(host: &Host, serial: &str) -> Result<(i32, Value)> {
    let ran = host.run(&["thaw", "vm", "--serial", serial, "--json"])?;
    Ok((ran.status, json(&ran)?))
}

/// Waits until the daemon has nothing frozen, and its scripts have ended.
fn over(host: &Host) -> Result<()> {
    Deadline::after(Duration::from_secs(60)).poll("the daemon to have nothing frozen", || {
        Ok(host.run(&["thaw", "vm"])?.stderr.contains("Nothing is frozen").then_some(()))
    })
}

fn still(guest: &Guest) -> Result<()> {
    let before = disks::counts(guest)?;
    guest.check("sleep 2")?;
    assert_eq!(disks::counts(guest)?, before, "a program writes to what is frozen");
    Ok(())
}

#[test]
fn what_is_frozen_stands_still_until_the_thaw() -> Result<()> {
    let (_alone, guest) = (alone(), GUEST.get()?);
    let host = Host::of(&guest)?;
    guest.check("truncate -s 0 /run/order")?;
    let ran = host.run(&["freeze", "vm", "--timeout", "60s", "--json"])?;
    ensure!(ran.status == 0, "{ran:?}");
    let told = json(&ran)?;
    // One of each, in this order; what is left out is told behind them.
    let list = told["file_systems"].as_array().context("a list")?;
    let frozen: Vec<&str> =
        list.iter().filter(|one| one["state"] == "frozen").filter_map(|one| one["mount"].as_str()).collect();
    assert_eq!(frozen, PLACES, "{told}");
    ensure!(list.iter().any(|one| one["mount"] == "/proc" && one["state"] == "pseudo"), "{told}");
    still(&guest)?;

    // Whoever else comes is told so at once, and what only asks is answered.
    for words in [
        &["freeze", "vm", "--json"][..],
        &["exec", "vm", "true"],
        &["trim", "vm", "--json"],
        &["stop", "vm", "--json"],
    ] {
        let ran = host.run(words)?;
        ensure!(ran.status == 125 && format!("{ran:?}").contains("frozen"), "{words:?}: {ran:?}");
    }
    ensure!(host.run(&["info", "vm"])?.text()?.contains("Debian"));

    // What the host sees now is whole.
    let copies = tempfile::tempdir()?;
    disks::copy(&guest, copies.path())?;
    still(&guest)?;
    let (status, thawed) = thaw(&host, &told["serial"].to_string())?;
    assert_eq!((status, &thawed["cause"], &thawed["whole"]), (0, &"asked".into(), &true.into()), "{thawed}");
    disks::are_whole(copies.path())?;
    disks::is_whole_once_mounted(&guest, copies.path())?;
    disks::advance(&guest)?;
    assert_eq!(guest.check("cat /run/order")?, "before freeze 0\nafter thaw 0\n");
    let again = host.run(&["thaw", "vm"])?;
    ensure!(again.status == 125 && again.stderr.contains("Nothing is frozen"), "{again:?}");

    // A script that objects keeps it from being frozen, and one that somebody else has frozen all others.
    guest.put("/etc/hospes/freeze.d/20-no", 0o755, b"#!/bin/sh\necho the backup runs; exit 3\n")?;
    let ran = host.run(&["freeze", "vm"])?;
    ensure!(
        ran.status == 125 && ran.stderr.contains("20-no") && ran.stderr.contains("the backup runs"),
        "{ran:?}"
    );
    disks::advance(&guest)?;
    guest.check("rm /etc/hospes/freeze.d/20-no; fsfreeze -f /srv/xfs")?;
    let ran = host.run(&["freeze", "vm"])?;
    guest.check("fsfreeze -u /srv/xfs")?;
    ensure!(ran.status == 125 && ran.stderr.contains("fsfreeze -u /srv/xfs"), "{ran:?}");
    disks::advance(&guest)
}

#[test]
fn whoever_dies_the_deadline_thaws_or_the_next_one_does() -> Result<()> {
    let (_alone, guest) = (alone(), GUEST.get()?);
    let mut host = Host::with_agent_of(&guest)?;
    let daemon = "systemctl show -P MainPID hospes-toolsd";

    // The next daemon comes up while its own root is frozen, and thaws it.
    let (serial, old) = (freeze(&host, "60s")?, guest.check(daemon)?);
    guest.check("systemctl kill -s KILL hospes-toolsd")?;
    let thawed = Deadline::after(Duration::from_secs(50)).poll("the next daemon to thaw", || {
        let ran = host.run(&["thaw", "vm", "--serial", &serial, "--json"])?;
        if ran.status == 0 { Ok(Some(json(&ran)?)) } else { Ok(None) }
    });
    let thawed = thawed.with_context(|| disks::facts(&guest))?;
    assert_eq!((&thawed["cause"], &thawed["whole"]), (&"asked".into(), &true.into()), "{thawed}");
    assert_ne!(guest.check(daemon)?, old);
    disks::advance(&guest)?;

    // Nobody is left who could ask: no daemon, no agent, no way to the guest.
    let serial = freeze(&host, "8s")?;
    host.kill_agent();
    guest.check("systemctl stop hospes-toolsd; truncate -s 0 /run/order")?;
    still(&guest)?;
    disks::advance(&guest)?;
    // The next daemon owes the scripts after it.
    guest.check("test ! -s /run/order && systemctl start hospes-toolsd")?;
    guest.wait_until("grep -q 'after thaw 0' /run/order", Duration::from_secs(60))?;
    over(&host)?;
    let ran = host.run(&["thaw", "vm", "--serial", &serial])?;
    ensure!(ran.status == 125 && ran.stderr.contains("Nothing is frozen"), "{ran:?}");

    // The daemon is there, and nobody asks it.
    let serial = freeze(&host, "4s")?;
    disks::advance(&guest)?;
    let (status, thawed) = thaw(&host, &serial)?;
    assert_eq!((status, &thawed["cause"]), (125, &"deadline".into()), "{thawed}");

    // The helper itself.
    let serial = freeze(&host, "60s")?;
    guest.check("systemctl kill -s KILL hospes-freeze")?;
    disks::advance(&guest)?;
    let (status, thawed) = thaw(&host, &serial)?;
    assert_eq!((status, &thawed["cause"]), (125, &"ended".into()), "{thawed}");
    assert_eq!(
        guest.check("systemctl --failed --plain --no-legend | grep -v hospes-freeze.service || true")?,
        ""
    );
    // And the next one works; its thaw's scripts have run when that is told.
    let serial = freeze(&host, "1s")?;
    disks::advance(&guest)?;
    thaw(&host, &serial).map(drop)
}

fn start(host: &Host, words: &[&str]) -> Result<Child> {
    let mut command = host.command(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: what a terminal's Ctrl-C goes to.
    Ok(command.process_group(0).spawn()?)
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    // The whole group; it may have ended by itself.
    let _ = kill(Pid::from_raw(-i32::try_from(child.id())?), signal);
    Ok(())
}

#[test]
fn with_a_command_it_thaws_however_the_command_ends() -> Result<()> {
    let (_alone, guest) = (alone(), GUEST.get()?);
    let host = Host::of(&guest)?;
    let ran = host.run(&["freeze", "vm", "--", "echo", "taken"])?;
    assert_eq!((ran.status, ran.stdout.as_slice()), (0, &b"taken\n"[..]), "{}", ran.stderr);
    disks::advance(&guest)?;
    let ran = host.run(&["freeze", "vm", "--json", "--", "sh", "-c", "echo no; exit 3"])?;
    let told = json(&ran)?;
    assert_eq!(
        (ran.status, ran.stderr.as_str(), &told["thaw"]["whole"]),
        (3, "no\n", &true.into()),
        "{told}"
    );
    disks::advance(&guest)?;
    assert_eq!(host.run(&["freeze", "vm", "--", "/no/such/program"])?.status, 127);
    disks::advance(&guest)?;
    // It took longer than it was given.
    let ran = host.run(&["freeze", "vm", "--timeout", "2s", "--", "sleep", "6"])?;
    ensure!(ran.status == 125 && ran.stderr.contains("none to rely on"), "{ran:?}");

    // Ctrl-C, and a signal for hospes alone.
    for (all, number) in [(true, Signal::SIGINT), (false, Signal::SIGTERM)] {
        let begun = host.home().join("begun");
        let script = format!("touch {}; sleep 600", begun.display());
        let mut child = start(&host, &["freeze", "vm", "--timeout", "60s", "--", "sh", "-c", &script])?;
        Deadline::after(Duration::from_secs(60))
            .poll("the command to run", || Ok(begun.exists().then_some(())))?;
        if all {
            signal(&child, number)?;
        } else {
            kill(Pid::from_raw(i32::try_from(child.id())?), number)?;
        }
        let status =
            Deadline::after(Duration::from_secs(60)).poll("hospes to end", || Ok(child.try_wait()?))?;
        assert_eq!(status.code(), Some(128 + number as i32));
        fs::remove_file(&begun)?;
        disks::advance(&guest)?;
    }
    Ok(())
}

#[test]
fn a_trim_gives_room_back() -> Result<()> {
    let (_alone, guest) = (alone(), GUEST.get()?);
    let host = Host::of(&guest)?;
    guest.check("for at in ext4 xfs; do head -c 32M /dev/urandom >/srv/$at/large; done; sync")?;
    let before = [disks::taken(&guest, "data.ext4")?, disks::taken(&guest, "data.xfs")?];
    guest.check("rm /srv/*/large; sync")?;
    let told = json(&host.run(&["trim", "vm", "--json"])?)?;
    let after = [disks::taken(&guest, "data.ext4")?, disks::taken(&guest, "data.xfs")?];
    let list = told["file_systems"].as_array().context("a list")?;
    for (at, mount) in ["/srv/ext4", "/srv/xfs"].iter().enumerate() {
        let bytes = list.iter().find(|one| one["mount"] == *mount).and_then(|one| one["bytes"].as_u64());
        ensure!(bytes.is_some_and(|bytes| bytes >= 20 << 20), "{told}");
        // The writers go on meanwhile.
        ensure!(after[at] + (16 << 20) < before[at], "{mount}: {before:?} bytes before, {after:?} after");
    }
    Ok(())
}

/// One random number generator for a run, so that a failing run can be repeated: `FREEZES_SEED`.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("FREEZES_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        eprintln!("FREEZES_SEED={seed} repeats this run");
        Self(seed)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Who dies while the disks are frozen and copied. The last is hospes, with the command that it runs.
const VICTIMS: [&str; 6] = ["nobody", "daemon", "helper", "agent", "link", "command"];

#[test]
fn what_hospes_calls_whole_is_whole_whoever_dies_meanwhile() -> Result<()> {
    let (_alone, guest) = (alone(), GUEST.get()?);
    let link = Link::to(&guest.vsock_path())?;
    let mut host = Host::sharing_identity()?;
    host.run(&["add", "vm", &format!("unix:{}", link.socket().display()), "--user", "dev"])?.text()?;
    host.start_agent()?;
    host.wait_connected("vm")?;
    let mut dice = Dice::new();
    let rounds = std::env::var("FREEZES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    // Rounds, snapshots that were whole, and those that hospes warned of.
    let mut sums = [[0_u32; 3]; VICTIMS.len()];
    for round in 0..rounds {
        let at =
            if round < VICTIMS.len() { round } else { usize::try_from(dice.roll(VICTIMS.len() as u64))? };
        let victim = VICTIMS[at];
        let copies = tempfile::tempdir()?;
        let (begun, script) = (copies.path().join("begun"), copies.path().join("script"));
        let go = copies.path().join("go");
        let text = format!(
            "touch {}; {:?} || exit; sleep {}.{}; until [ -e {} ]; do sleep 0.05; done",
            begun.display(),
            disks::copying(&guest, copies.path()),
            dice.roll(3),
            dice.roll(10),
            go.display()
        );
        fs::write(&script, text)?;
        // Where nobody is left who asks for the thaw, the deadline is waited for.
        let timeout = if victim == "command" { 6000 + dice.roll(6000) } else { 20_000 + dice.roll(10_000) };
        let timeout = format!("{timeout}ms");
        let words = ["freeze", "vm", "--timeout", &timeout, "--", "sh", &script.display().to_string()];
        let what = format!("round {round}, {timeout}, {victim} killed");
        let mut child = start(&host, &words)?;
        // Some time from its first moment on; the helper, whose end is the snapshot's, while that is taken.
        if victim == "helper" {
            let running = || {
                ensure!(child.try_wait()?.is_none(), "{what}: hospes has ended before its command began");
                Ok(begun.exists().then_some(()))
            };
            Deadline::after(Duration::from_secs(120)).poll(&what, running)?;
        } else {
            fs::write(&go, "")?;
            thread::sleep(Duration::from_millis(dice.roll(3000)));
        }
        match victim {
            "daemon" => drop(guest.check("systemctl kill -s KILL hospes-toolsd")?),
            "helper" => {
                guest.check("systemctl kill -s KILL hospes-freeze")?;
                fs::write(&go, "")?;
            }
            "agent" => host.kill_agent(),
            "command" => signal(&child, Signal::SIGKILL)?,
            "link" => {
                link.cut();
                thread::sleep(Duration::from_millis(dice.roll(8000)));
                link.mend();
            }
            _ => {}
        }
        let (status, stderr) = ends(child, &what)?;
        sums[at][0] += 1;
        if status == 0 {
            ensure!(victim != "helper", "{what}: hospes calls whole what was thawed too early");
            disks::are_whole(copies.path()).context(what.clone())?;
            sums[at][1] += 1;
        } else {
            ensure!(victim != "nobody" && victim != "agent", "{what}: {status} {stderr}");
            ensure!(
                victim == "command" || (status == 125 && !stderr.is_empty()),
                "{what}: {status} {stderr}"
            );
            sums[at][2] += 1;
        }
        // Nothing stays frozen, and the next one is served, whoever died.
        disks::advance(&guest).context(what.clone())?;
        if victim == "agent" {
            host.start_agent()?;
        }
        over(&host).context(what)?;
        assert_eq!(host.run(&["exec", "vm", "--", "echo", "well"])?.stdout, b"well\n");
        guest.check("systemctl reset-failed hospes-toolsd hospes-freeze.service")?;
    }
    for (victim, [rounds, whole, told]) in VICTIMS.iter().zip(sums) {
        eprintln!(
            "{victim} killed: {rounds} freezes, {whole} snapshots whole, {told} called none to rely on"
        );
    }
    ensure!(sums[0][1] > 0, "not one snapshot was taken");
    Ok(())
}

/// Waits for a command that has to end by itself.
fn ends(mut child: Child, what: &str) -> Result<(i32, String)> {
    let mut stderr = child.stderr.take().context("a pipe")?;
    let words = thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut stderr, &mut text)
            .map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let status = Deadline::after(Duration::from_secs(240)).poll(what, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill()?;
    }
    let status = status?;
    let ended = std::os::unix::process::ExitStatusExt::signal(&status).map_or(-1, |signal| 128 + signal);
    match words.join() {
        Ok(words) => Ok((status.code().unwrap_or(ended), words?)),
        Err(_) => bail!("{what}: its words were not read"),
    }
}

#[test]
fn it_thaws_where_its_only_way_to_the_host_has_gone() -> Result<()> {
    let guest = Guest::boot(with_tools("freeze-device")?)?;
    tools_started(&guest)?;
    let host = Host::of(&guest)?;
    freeze(&host, "5s")?;
    let pid = guest.vsock_pid().context("the guest has a device")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    guest.wait_until("timeout 2 touch /root/thawed", Duration::from_secs(60))?;
    guest.wait_until("! test -e /run/hospes/freezing", Duration::from_secs(30)).map(drop)
}
