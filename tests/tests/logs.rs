//! `hospes logs`: the guest tools' lines of the guest's own journal, as they are and as they come.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Host, SharedGuest, tools_started, with_tools};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("logs")).prepared(tools_started);

#[test]
fn the_daemons_and_the_workers_lines_are_shown_and_no_escape_in_them() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::of(&guest)?;
    host.run(&["exec", "vm", "--", "echo", "a\u{1b}[2Jb"])?.text()?;
    let lines = host.run(&["logs", "vm"])?.text()?;
    let told = |words: &[&str]| {
        lines.lines().any(|line| line.starts_with("guest ") && words.iter().all(|word| line.contains(word)))
    };
    ensure!(told(&["hospes-toolsd", "Listening on vsock port 650"]), "{lines}");
    ensure!(told(&["exec as dev by SHA256:", "u{1b}[2J"]) && !lines.contains('\u{1b}'), "{lines}");
    // The journal's other units are no business of ours.
    ensure!(!lines.contains("systemd-journald"), "{lines}");
    let few = host.run(&["logs", "vm", "-n", "2"])?.text()?;
    assert_eq!(few.lines().filter(|line| line.starts_with("guest ")).count(), 2);
    Ok(())
}

#[test]
fn new_lines_come_as_they_are_written_and_leave_nothing_behind() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::of(&guest)?;
    let mut child = host
        .command(&["logs", "vm", "-f", "-n", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("it has a pipe")?).lines();
    // The line of its own reading is there: from here on it follows.
    let first = lines.next().context("no line")??;
    ensure!(first.starts_with("guest "), "{first}");
    host.run(&["exec", "vm", "--", "true", "a-word-like-no-other"])?.text()?;
    loop {
        let line = lines.next().context("it ended")??;
        if line.contains("exec as dev") && line.contains("a-word-like-no-other") {
            break;
        }
    }
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    ensure!(!child.wait()?.success());
    guest.wait_until("! pgrep -x journalctl", Duration::from_secs(30))?;
    Ok(())
}

#[test]
fn a_user_who_may_not_read_the_journal_is_told_no_lies() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::of(&guest)?;
    let ran = host.run(&["logs", "vm", "-u", "eve"])?;
    ensure!(!ran.stdout.windows(6).any(|bytes| bytes == b"exec a"), "{ran:?}");
    Ok(())
}
