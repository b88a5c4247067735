//! Keys and policy that are provisioned from outside: a guest that trusts its host from its first boot, and no other.

use anyhow::{Result, ensure};
use integration_tests::{Guest, Host, tools_started, with_tools};

#[test]
fn credentials_from_the_vmm_name_the_host_and_the_policy_from_the_first_boot_on() -> Result<()> {
    let (host, stranger) = (Host::new()?, Host::new()?);
    let credential = |name: &str, value: &str| {
        // A comma ends the value unless it is doubled.
        format!("name=opt/io.systemd.credentials/{name},string={}", value.replace(',', ",,"))
    };
    let key = host.run(&["key", "show"])?.text()?;
    let trusted = credential("hospes.trusted-hosts", key.trim());
    let policy = credential("hospes.tools.toml", "[verbs]\nps = false\n");
    let spec = with_tools("trust")?.qemu(["-fw_cfg", &trusted, "-fw_cfg", &policy]);
    let guest = Guest::boot(spec)?;
    tools_started(&guest)?;

    // The other one comes first, and is not trusted for it.
    stranger.add("vm", &guest)?;
    let refused = stranger.run(&["exec", "vm", "--", "true"])?;
    ensure!(refused.status == 125, "{refused:?}");
    for party in [&host, &stranger] {
        let fingerprint = party.run(&["key", "show", "--fingerprint"])?.text()?;
        ensure!(
            refused.stderr.contains(fingerprint.trim()),
            "{} is not named: {refused:?}",
            fingerprint.trim()
        );
    }
    host.add("vm", &guest)?;
    assert_eq!(host.run(&["exec", "vm", "--", "id", "-un"])?.text()?, "dev\n");
    let forbidden = host.run(&["ps", "vm"])?;
    ensure!(forbidden.stderr.contains("[verbs] ps"), "the policy is not in force: {forbidden:?}");

    let listed = guest.check("hospes-tools trust list")?;
    ensure!(listed.contains("credential hospes.trusted-hosts"), "{listed}");
    let fingerprint = host.run(&["key", "show", "--fingerprint"])?.text()?;
    let removed = guest.sh(&format!("hospes-tools trust remove {}", fingerprint.trim()))?;
    ensure!(removed.status != 0 && removed.stderr.contains("comes with the machine"), "{removed:?}");
    // It goes when the machine no longer brings it: nothing of it was written down.
    guest.check("! test -e /var/lib/hospes/first-use")?;
    Ok(())
}
