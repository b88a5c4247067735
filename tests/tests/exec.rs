//! `hospes exec` and `hospes shell` against a booted guest that got the package by apt, over its real vsock.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Guest, Host, Ran, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("exec")).prepared(tools_started);

fn exec(host: &Host, words: &[&str]) -> Result<Ran> {
    host.run(&[&["exec", "vm", "--"], words].concat())
}

#[test]
fn streams_and_status_are_the_commands_own() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let ran = exec(&host, &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((ran.status, ran.stdout.as_slice(), ran.stderr.as_str()), (7, &b"out\n"[..], "err\n"));
    let ran = host.run_with(&["exec", "-i", "vm", "--", "tr", "a-z", "A-Z"], b"from stdin")?;
    assert_eq!((ran.status, ran.stdout.as_slice()), (0, &b"FROM STDIN"[..]));
    Ok(())
}

#[test]
fn the_command_is_the_users_in_a_session_of_their_own() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let text = exec(&host, &["sh", "-c", "id -un; pwd; echo $XDG_RUNTIME_DIR; echo $HOME"])?.text()?;
    assert_eq!(text, "dev\n/home/dev\n/run/user/1000\n/home/dev\n");
    let eve = host.run(&["exec", "-u", "eve", "vm", "--", "id", "-un"])?.text()?;
    assert_eq!(eve, "eve\n");
    // The daemon has no child but its own.
    let children = guest.check("pgrep -c -P $(systemctl show -P MainPID hospes-toolsd) || true")?;
    assert_eq!(children.trim(), "0", "the daemon forked");
    Ok(())
}

#[test]
fn exit_codes_are_those_that_shell_users_know() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    assert_eq!(exec(&host, &["no-such-program"])?.status, 127);
    assert_eq!(exec(&host, &["/etc/passwd"])?.status, 126);
    assert_eq!(exec(&host, &["sh", "-c", "kill -TERM $$"])?.status, 128 + 15);
    assert_eq!(host.run(&["exec", "-u", "nobody-here", "vm", "--", "true"])?.status, 125);
    assert_eq!(host.run(&["exec", "no-such-vm", "--", "true"])?.status, 125);
    Ok(())
}

#[test]
fn megabytes_cross_both_ways_unchanged() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let sent: Vec<u8> =
        (0u32..6 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0]).collect();
    let ran = host.run_with(&["exec", "-i", "vm", "--", "cat"], &sent)?;
    ensure!(ran.status == 0, "{}", ran.stderr);
    ensure!(ran.stdout == sent, "{} bytes came back of {}, or other ones", ran.stdout.len(), sent.len());
    Ok(())
}

#[test]
fn output_to_one_file_keeps_its_order() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let script = "for n in $(seq 500); do echo $n; echo $n >&2; done";
    let path = host.home().join("both");
    let file = std::fs::File::create(&path)?;
    let status = host
        .command(&["exec", "vm", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()?;
    ensure!(status.success());
    let expected: String = (1..=500).map(|n| format!("{n}\n{n}\n")).collect();
    assert_eq!(std::fs::read_to_string(path)?, expected);
    Ok(())
}

#[test]
fn a_loop_over_a_file_keeps_its_own_stdin() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let loop_ = format!(
        "printf 'one\\ntwo\\nthree\\n' | while read word; do '{0}' exec -n vm -- echo \"$word\"; done",
        host.program().display()
    );
    let output = Command::new("sh").args(["-c", &loop_]).env_clear().envs(host.environment()).output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\nthree\n");
    Ok(())
}

#[test]
fn a_closed_pipe_ends_an_endless_command() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let pipe = format!(
        "'{}' exec vm -- sh -c 'echo $$; exec yes marker-of-this-test' | head -n 3",
        host.program().display()
    );
    let output = Command::new("sh").args(["-c", &pipe]).env_clear().envs(host.environment()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let first = text.lines().next();
    let pid: u32 = first.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?.parse()?;
    guest.wait_until(&format!("! test -d /proc/{pid}"), Duration::from_secs(20)).map(drop)
}

#[test]
fn a_terminal_has_the_callers_size_and_an_end_of_file() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let line = format!(
        "stty rows 33 cols 101; exec '{}' exec -t vm -- sh -c 'tty; stty size'",
        host.program().display()
    );
    let output = Command::new("script")
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .env_clear()
        .envs(host.environment())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    ensure!(text.contains("/dev/pts/") && text.contains("33 101"), "{text}");
    Ok(())
}

#[test]
fn a_killed_client_takes_its_whole_command_down() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    // The shell ignores the hang-up, and its child is in a session of its own.
    let script = "trap '' HUP; echo ready; setsid sleep 98765 & sleep 98765";
    let mut child = host
        .command(&["exec", "vm", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    guest.wait_until("test $(pgrep -fc '^sleep 98765') -ge 2", Duration::from_secs(30))?;
    child.kill()?;
    child.wait()?;
    guest.wait_until("! pgrep -f '^sleep 98765'", Duration::from_secs(40)).map(drop)
}

#[test]
fn a_timeout_ends_the_command_and_says_so() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let ran = host.run(&["exec", "--timeout", "1s", "vm", "--", "sleep", "4321"])?;
    ensure!(ran.status == 124, "status {}: {}", ran.status, ran.stderr);
    assert_eq!(guest.sh("pgrep -f 'sleep [4]321'")?.stdout, "");
    Ok(())
}

#[test]
fn a_detached_command_is_found_again_with_its_output() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::with_agent_of(&guest)?;
    let script = "echo before; until [ -e /tmp/go-on ]; do sleep 0.2; done; echo after; exit 3";
    let id = host.run(&["exec", "--detach", "vm", "--", "sh", "-c", script])?.text()?;
    guest.check("touch /tmp/go-on")?;
    let ran = host.run(&["attach", "vm", id.trim()])?;
    assert_eq!((ran.status, ran.stdout.as_slice()), (3, &b"before\nafter\n"[..]), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_session_that_begins_slowly_is_waited_for_and_one_that_does_not_is_told() -> Result<()> {
    let guest = Guest::boot(with_tools("exec-session")?)?;
    tools_started(&guest)?;
    let host = Host::with_agent_of(&guest)?;
    // Longer than a host waits for a guest's proof: a directory or a key agent that takes its time.
    guest.check("echo 'session optional pam_exec.so /usr/bin/sleep 15' >>/etc/pam.d/hospes-session")?;
    assert_eq!(host.run(&["exec", "vm", "-u", "eve", "--", "id", "-un"])?.text()?, "eve\n");

    guest.check("sed -i '$ c session required pam_deny.so' /etc/pam.d/hospes-session")?;
    let told = host.run(&["exec", "vm", "-u", "dev", "--", "true"])?;
    assert_eq!(told.status, 125);
    for word in ["session of dev", "systemctl status hospes-session@1000.service"] {
        ensure!(told.stderr.contains(word), "{word:?} is not told: {}", told.stderr);
    }
    // And it is served once its session can begin.
    guest.check("sed -i '$ d' /etc/pam.d/hospes-session")?;
    assert_eq!(host.run(&["exec", "vm", "-u", "dev", "--", "id", "-un"])?.text()?, "dev\n");
    Ok(())
}
