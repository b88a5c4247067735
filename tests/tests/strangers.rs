//! Other users of either machine: what they reach of ours, and what they are told.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Beside, Host, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("strangers")).prepared(tools_started);

/// One test stops the daemon, the others need it.
static DAEMON: RwLock<()> = RwLock::new(());

const WAIT: Duration = Duration::from_secs(30);

/// As a user of this machine that owns nothing.
fn as_nobody(program: &Path) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        command
    } else {
        let mut command = Command::new("sudo");
        command.args(["--non-interactive", "--preserve-env", "--user", "#65534", "--"]);
        command
    };
    command.arg(program);
    command
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

#[test]
fn another_user_of_the_host_gets_nothing_from_the_agent() -> Result<()> {
    let guest = Beside::start("")?;
    let mut host = Host::new()?;
    host.add_socket("vm", &guest.socket())?;
    host.start_agent()?;
    host.wait_connected("vm")?;

    // Where nobody may go: the program, and a home with the owner's runtime directory in its environment.
    let place = tempfile::Builder::new().prefix("hospes-").tempdir()?;
    set_mode(place.path(), 0o777)?;
    let program = place.path().join("hospes");
    fs::copy(host.program(), &program)?;
    let asked = |words: &[&str]| -> Result<(bool, String)> {
        let output = as_nobody(&program)
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", place.path())
            .env("XDG_RUNTIME_DIR", host.home().join("run"))
            .current_dir("/")
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ok((output.status.success(), text.into_owned()))
    };
    let gets_nothing = || -> Result<()> {
        let (_, list) = asked(&["list", "--json"])?;
        ensure!(list.contains("\"vms\":[]"), "it sees the owner's VMs: {list}");
        for words in [&["logs", "vm", "--host"][..], &["exec", "vm", "--", "true"]] {
            let (good, told) = asked(words)?;
            ensure!(!good && !told.contains("SHA256:"), "{words:?}: {told}");
        }
        Ok(())
    };
    let socket = host.home().join("run/hospes/agent.sock");
    ensure!(fs::metadata(&socket)?.permissions().mode() & 0o777 == 0o600, "the socket is open to others");
    ensure!(fs::metadata(host.home().join("run/hospes"))?.permissions().mode() & 0o077 == 0);
    gets_nothing()?;
    let log = || -> Result<String> { Ok(fs::read_to_string(host.home().join("agent.log"))?) };
    ensure!(!log()?.contains("65534"), "the kernel let it through to the agent: {}", log()?);

    // Even where somebody opens every door to it, the agent does not listen to it, and says so.
    for (path, mode) in [("", 0o777), ("run", 0o777), ("run/hospes", 0o777), ("run/hospes/agent.sock", 0o666)]
    {
        set_mode(&host.home().join(path), mode)?;
    }
    gets_nothing()?;
    ensure!(log()?.contains("refused a command of user 65534"), "no line says so: {}", log()?);
    set_mode(&host.home().join("run"), 0o700)?;
    assert_eq!(host.run(&["exec", "vm", "--", "echo", "here"])?.text()?, "here\n");
    Ok(())
}

#[test]
fn a_guests_own_programs_are_not_the_host_on_its_port() -> Result<()> {
    let guest = GUEST.get()?;
    let _daemon = DAEMON.read().unwrap_or_else(PoisonError::into_inner);
    let host = Host::of(&guest)?;
    assert_eq!(host.run(&["exec", "vm", "--", "echo", "here"])?.text()?, "here\n");
    guest.check("modprobe vsock_loopback")?;
    let since = guest.check("date +%s.%N")?;
    let since = since.trim();
    for user in ["dev", "root"] {
        // Loopback, and the guest's own address.
        for cid in [1, guest.cid()] {
            let told = guest
                .check(&format!("timeout 20 runuser -u {user} -- socat -u VSOCK-CONNECT:{cid}:650 -"))?;
            ensure!(told.contains("Only the host may connect here"), "{user} by cid {cid} is told {told:?}");
        }
    }
    guest.wait_until(
        &format!("[ $(journalctl -u hospes-toolsd --since @{since} | grep -c 'Refused vsock cid') -ge 4 ]"),
        WAIT,
    )?;
    assert_eq!(host.run(&["exec", "vm", "--", "echo", "here"])?.text()?, "here\n");
    Ok(())
}

#[test]
fn an_ordinary_user_of_the_guest_cannot_take_the_daemons_place() -> Result<()> {
    let guest = GUEST.get()?;
    let _daemon = DAEMON.write().unwrap_or_else(PoisonError::into_inner);
    let host = Host::of(&guest)?;
    host.run(&["exec", "vm", "--", "true"])?.text()?;
    // With the port free: it is the kernel that forbids, and not that somebody has it already.
    guest.check("systemctl stop hospes-toolsd")?;
    let posing = guest.sh("runuser -u dev -- timeout 10 socat VSOCK-LISTEN:650 EXEC:/bin/cat")?;
    let told = host.run(&["exec", "vm", "--connect-timeout", "5s", "--", "true"])?;
    guest.check("systemctl start hospes-toolsd")?;
    ensure!(posing.status != 124 && posing.stderr.contains("Permission denied"), "{posing:?}");
    ensure!(told.status == 125, "something served the host: {told:?}");
    assert_eq!(host.run(&["exec", "vm", "--", "echo", "here"])?.text()?, "here\n");
    Ok(())
}

#[test]
fn no_user_of_the_guest_hands_connections_to_a_worker_not_even_their_own() -> Result<()> {
    let guest = GUEST.get()?;
    let _daemon = DAEMON.read().unwrap_or_else(PoisonError::into_inner);
    let host = Host::of(&guest)?;
    host.run(&["exec", "vm", "--", "true"])?.text()?;
    let socket = guest.check("echo /run/hospes/session/$(id -u dev).sock")?;
    let socket = socket.trim();
    assert_eq!(guest.check(&format!("stat -c '%U %a' {socket}"))?, "root 600\n");
    let tries = |user: &str| -> Result<String> {
        let words = format!("echo | timeout 10 runuser -u {user} -- socat -t 5 - UNIX-CONNECT:{socket}");
        Ok(guest.sh(&words)?.stderr)
    };
    for user in ["dev", "eve"] {
        let told = tries(user)?;
        ensure!(told.contains("Permission denied"), "{user}: {told:?}");
        for path in ["/var/lib/hospes", "/run/hospes/session"] {
            let listed = guest.sh(&format!("runuser -u {user} -- find {path} -type f -readable"))?;
            ensure!(listed.stdout.is_empty(), "{user} reads {listed:?}");
        }
    }

    // Should the file system's guard fall, the worker has its own.
    let open = format!("chmod a+rwx /run/hospes /run/hospes/session {socket}");
    let modes =
        guest.check(&format!("stat -c 'chmod %a %n;' /run/hospes /run/hospes/session {socket}; {open}"))?;
    let since = guest.check("date +%s.%N")?;
    for user in ["dev", "eve"] {
        let told = tries(user)?;
        ensure!(!told.contains("Permission denied"), "{user} did not even get there: {told}");
        let line = format!(
            "journalctl --since @{} | grep -q \"User $(id -u {user}) may not hand connections over\"",
            since.trim()
        );
        guest.wait_until(&line, WAIT)?;
    }
    guest.check(&modes)?;
    assert_eq!(host.run(&["exec", "vm", "--", "echo", "here"])?.text()?, "here\n");
    Ok(())
}
