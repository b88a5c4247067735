//! Guest variables between `hospes var` here and `hospes-tools var` in a booted guest.

use anyhow::{Result, ensure};
use integration_tests::{Host, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("var")).prepared(tools_started);

#[test]
fn a_value_crosses_both_ways_byte_for_byte() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::of(&guest)?;
    host.run_with(&["var", "vm", "set", "bytes", "-"], b"\x00\xff\n\n")?.text()?;
    assert_eq!(guest.check("su eve -c 'hospes-tools var get bytes' | od -An -tx1")?, " 00 ff 0a 0a\n");
    guest.check("hospes-tools var set guest.ready 'yes, it is'")?;
    assert_eq!(host.run(&["var", "vm", "get", "guest.ready"])?.text()?, "yes, it is");
    let missing = host.run(&["var", "vm", "get", "guest.none"])?;
    assert_eq!((missing.status, missing.stdout.len()), (1, 0));
    Ok(())
}

#[test]
fn users_read_and_root_alone_sets_and_takes_secrets_once() -> Result<()> {
    let guest = GUEST.get()?;
    let host = Host::of(&guest)?;
    host.run_with(&["var", "vm", "set", "token", "-", "--secret"], b"hunter2")?.text()?;
    ensure!(host.run(&["var", "vm", "get", "token"])?.status == 125, "the host reads a secret back");
    let listed = host.run(&["var", "vm", "list", "--json"])?.text()?;
    ensure!(listed.contains("\"token\"") && !listed.contains("hunter2"), "{listed}");
    for words in ["get token", "set guest.mine 1", "unset guest.ready"] {
        let tried = guest.sh(&format!("su eve -c 'hospes-tools var {words}'"))?;
        ensure!(tried.status != 0 && tried.stdout.is_empty(), "eve may {words}: {tried:?}");
    }
    let found = guest
        .sh("grep -l hunter2 -r /run/hospes --include='*' 2>/dev/null; su eve -c 'cat /run/hospes/*'")?;
    ensure!(!found.stdout.contains("hunter2"), "a user reads the secret");
    // A daemon that dies keeps it for the one reader.
    guest.check(
        "systemctl kill -s KILL hospes-toolsd; until hospes-tools status >/dev/null; do sleep 0.2; done",
    )?;
    assert_eq!(guest.check("hospes-tools var get token")?, "hunter2");
    ensure!(guest.sh("hospes-tools var get token")?.status == 1, "a secret is read twice");
    guest.check("! grep -q hunter2 -r /run/hospes")?;
    Ok(())
}
