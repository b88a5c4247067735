//! Processes die at the worst moment; what they did not do themselves goes on, and what ends says so.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Result;
use integration_tests::{Guest, Host, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("faults")).prepared(tools_started);

fn host(guest: &Guest) -> Result<Host> {
    let mut host = Host::sharing_identity()?;
    host.add("vm", guest)?;
    host.start_agent()?;
    host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
    Ok(host)
}

#[test]
fn killing_the_daemon_or_the_agent_ends_no_command() -> Result<()> {
    let guest = GUEST.get()?;
    let mut host = host(&guest)?;
    let script = "echo started; until [ -e /tmp/daemon-killed ]; do sleep 0.2; done; echo survived";
    let child = host
        .command(&["exec", "vm", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    guest.wait_until("pgrep -f [d]aemon-killed", Duration::from_secs(30))?;
    guest.check("systemctl kill -s KILL hospes-toolsd")?;
    host.kill_agent();
    guest.wait_until("systemctl is-active hospes-toolsd", Duration::from_secs(30))?;
    guest.check("touch /tmp/daemon-killed")?;
    let output = child.wait_with_output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "started\nsurvived\n");
    assert!(output.status.success());
    // And the next command finds its way, with no agent and a daemon that knows no session.
    assert_eq!(host.run(&["exec", "vm", "--", "echo", "on"])?.text()?, "on\n");
    Ok(())
}
