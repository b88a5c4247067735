//! Processes die at the worst moment; what they did not do themselves goes on, and what ends says so.
//!
//! `FAULTS` is the number of random kills, 20 unless set; `make torture` does 200.

use std::fs;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Deadline, Guest, Host, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("faults")).prepared(tools_started);

/// Held by whoever kills in the shared guest: one test's victim is another's command.
static KILLING: Mutex<()> = Mutex::new(());

/// One random number generator for a run, so that a failing run can be repeated: `FAULTS_SEED`.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("FAULTS_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        eprintln!("FAULTS_SEED={seed} repeats this run");
        Self(seed)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn rounds() -> u64 {
    std::env::var("FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// Waits for a command that has to end by itself.
fn ends(mut child: Child, what: &str) -> Result<(i32, Vec<u8>, String)> {
    let deadline = Deadline::after(Duration::from_secs(120));
    let (mut out, mut err) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
    let out = thread::spawn(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut out, &mut bytes).map(|_| bytes)
    });
    let err = thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut err, &mut text).map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let status = deadline.poll(what, || Ok(child.try_wait()?));
    if status.is_err() {
        child.kill()?;
    }
    let signal = |status: std::process::ExitStatus| std::os::unix::process::ExitStatusExt::signal(&status);
    let status = status?;
    let code = status.code().unwrap_or(128 + signal(status).unwrap_or(0));
    Ok((code, out.join().expect("no panic")?, err.join().expect("no panic")?))
}

fn start(host: &Host, words: &[&str]) -> Result<Child> {
    let mut command = host.command(words);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

#[test]
fn random_kills_end_in_the_right_result_or_a_clear_error() -> Result<()> {
    let guest = GUEST.get()?;
    let _alone = KILLING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut host = Host::with_agent_of(&guest)?;
    let mut dice = Dice::new();
    let source = host.home().join("source");
    let content: Vec<u8> = (0u32..3 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    fs::write(&source, &content)?;
    let source = source.display().to_string();
    let counted = "for n in $(seq 400); do echo line $n; done; sleep 0.2; echo end; exit 9";
    let expected: String = (1..=400).map(|n| format!("line {n}\n")).collect::<String>() + "end\n";
    let (mut right, mut errors) = (0, 0);
    for round in 0..rounds() {
        let copies = dice.roll(2) == 1;
        let child = if copies {
            start(&host, &["cp", "-q", &source, "vm:/home/dev/target"])?
        } else {
            start(&host, &["exec", "vm", "--", "sh", "-c", counted])?
        };
        thread::sleep(Duration::from_millis(dice.roll(900)));
        let victim = ["daemon", "worker", "agent", "command"][usize::try_from(dice.roll(4))?];
        match victim {
            "daemon" => drop(guest.sh("systemctl kill -s KILL hospes-toolsd")?),
            "worker" => drop(guest.sh("systemctl kill --kill-whom=main -s KILL hospes-session@1000")?),
            "agent" => host.kill_agent(),
            _ => {
                // It may have ended by itself.
                let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        let act = if copies { "cp" } else { "exec" };
        let what = format!("round {round}, {act} with its {victim} killed");
        let (status, stdout, stderr) = ends(child, &what)?;
        let good = if copies { status == 0 } else { status == 9 && stdout == expected.as_bytes() };
        if good {
            right += 1;
        } else {
            errors += 1;
            let killed = victim == "command" && status == 128 + 9;
            ensure!(killed || !stderr.is_empty(), "{what}: status {status} and not a word");
            ensure!(killed || status != 0, "{what}: success with {} bytes: {stderr}", stdout.len());
            ensure!(status != 9, "{what}: the command's own status with {} bytes of output", stdout.len());
            ensure!(
                expected.as_bytes().starts_with(&stdout),
                "{what}: output that the command did not write"
            );
        }
        if copies {
            // Whole or not at all: what stands there is a complete copy.
            let found = guest.sh("cat /home/dev/target 2>/dev/null | wc -c; sha256sum </home/dev/target")?;
            let whole = found.stdout.starts_with(&format!("{}\n", content.len()));
            ensure!(whole || (!good && found.stdout.starts_with("0\n")), "{what}: left {}", found.stdout);
            guest.check("rm -f /home/dev/target")?;
        }
        if victim == "agent" {
            host.start_agent()?;
        }
        // The next one works, whoever died.
        let deadline = Deadline::after(Duration::from_secs(60));
        deadline.poll("the guest to be served again", || {
            let ran = host.run(&["exec", "vm", "--", "echo", "well"])?;
            Ok((ran.status == 0 && ran.stdout == b"well\n").then_some(()))
        })?;
    }
    eprintln!("{right} ended right, {errors} with a clear error");
    // Nothing stays behind: no command, no partial file, no descriptor.
    guest.wait_until("! pgrep -u dev -f 'line [$]n'", Duration::from_secs(40))?;
    let left =
        guest.check("ls -A /home/dev | grep -v '^\\.bash\\|^\\.profile\\|^\\.ssh\\|^\\.cache' || true")?;
    assert_eq!(left, "", "files stayed behind");
    let daemon = "test $(ls /proc/$(systemctl show -P MainPID hospes-toolsd)/fd | wc -l) -lt 40";
    guest.wait_until(daemon, Duration::from_secs(30))?;
    Ok(())
}

#[test]
fn killing_the_daemon_or_the_agent_ends_no_command() -> Result<()> {
    let guest = GUEST.get()?;
    let _alone = KILLING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut host = Host::with_agent_of(&guest)?;
    let script = "echo started; until [ -e /tmp/daemon-killed ]; do sleep 0.2; done; echo survived";
    let mut child = start(&host, &["exec", "vm", "--", "sh", "-c", script])?;
    // Its first line is there: it was handed over.
    let mut first = [0; 8];
    let mut stdout = child.stdout.take().context("stdout is a pipe")?;
    std::io::Read::read_exact(&mut stdout, &mut first)?;
    child.stdout = Some(stdout);
    guest.check("systemctl kill -s KILL hospes-toolsd")?;
    host.kill_agent();
    guest.wait_until("systemctl is-active hospes-toolsd", Duration::from_secs(30))?;
    guest.check("touch /tmp/daemon-killed")?;
    let (status, rest, stderr) = ends(child, "the command to survive")?;
    assert_eq!(
        (status, &first, String::from_utf8_lossy(&rest).as_ref()),
        (0, b"started\n", "survived\n"),
        "{stderr}"
    );
    // And the next command finds its way, with no agent and a daemon that knows no session.
    assert_eq!(host.run(&["exec", "vm", "--", "echo", "on"])?.text()?, "on\n");
    Ok(())
}

#[test]
fn a_paused_guest_goes_on_where_it_was() -> Result<()> {
    let guest = Guest::boot(with_tools("faults-paused")?)?;
    tools_started(&guest)?;
    let host = Host::with_agent_of(&guest)?;
    let child = start(&host, &["exec", "vm", "--", "sh", "-c", "echo a; sleep 2; echo b; exit 5"])?;
    thread::sleep(Duration::from_secs(1));
    guest.pause()?;
    thread::sleep(Duration::from_secs(4));
    guest.resume()?;
    let (status, stdout, stderr) = ends(child, "the command after the pause")?;
    assert_eq!((status, stdout.as_slice()), (5, &b"a\nb\n"[..]), "{stderr}");
    Ok(())
}

#[test]
fn a_killed_device_is_an_error_here_at_once() -> Result<()> {
    let guest = Guest::boot(with_tools("faults-device")?)?;
    tools_started(&guest)?;
    let host = Host::with_agent_of(&guest)?;
    let child = start(&host, &["exec", "vm", "--", "sleep", "600"])?;
    guest.wait_until("pgrep -fx 'sleep 600'", Duration::from_secs(30))?;
    let pid = guest.vsock_pid().context("the guest has a device")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    let start_ = Instant::now();
    let (status, _, stderr) = ends(child, "the command whose device died")?;
    ensure!(status == 125 && !stderr.is_empty(), "status {status}: {stderr}");
    let again = host.run(&["exec", "vm", "--", "true"])?;
    ensure!(again.status == 125 && !again.stderr.is_empty(), "{again:?}");
    if start_.elapsed() > Duration::from_secs(60) {
        bail!("it took {} s to say so", start_.elapsed().as_secs());
    }
    Ok(())
}
