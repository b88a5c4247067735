//! The package in a Debian guest: what it starts, what it leaves alone, and what it leaves behind.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{Guest, GuestSpec, Host, Lab, with_tools};

const TRACES: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /root \\) -prune -o \
                      -iname '*hospes*' ! -name 'hospes-tools_*.deb' ! -path '/var/log/*' ! -path '/usr/local/*' \
                      ! -path '/var/lib/dpkg/info/lab-*' ! -path '/etc/systemd/system/*lab*' -print | sort";

#[test]
fn on_a_machine_that_is_no_guest_it_stays_quiet_and_says_why() -> Result<()> {
    let guest = Guest::boot(GuestSpec::new("package-no-vsock").without_vsock())?;
    let before = guest.check(TRACES)?;
    guest.install(&[Lab::package()?])?;
    assert_ne!(guest.sh("systemctl is-active hospes-toolsd")?.stdout, "active\n");
    assert_eq!(guest.check("systemctl --failed --plain --no-legend")?, "");
    let status = guest.sh("hospes-tools status")?;
    ensure!(status.stdout.contains("vsock"), "it does not say why: {status:?}");

    // Removed, it keeps what the administrator wrote; purged, nothing is left.
    guest.check("echo '# mine' >>/etc/hospes/tools.toml; apt-get -q -y remove hospes-tools")?;
    ensure!(guest.check("tail -n 1 /etc/hospes/tools.toml")? == "# mine\n");
    guest.check("apt-get -q -y purge hospes-tools")?;
    assert_eq!(guest.check(TRACES)?, before);
    Ok(())
}

#[test]
fn installed_in_a_running_guest_it_serves_at_once() -> Result<()> {
    let guest = Guest::boot(GuestSpec::new("package-install"))?;
    let before = guest.check(TRACES)?;
    guest.install(&[Lab::package()?])?;
    guest.wait_until("systemctl is-active hospes-toolsd", Duration::from_secs(60))?;
    let mut host = Host::new()?;
    host.add("vm", &guest)?;
    host.start_agent()?;
    host.run(&["wait", "vm", "--timeout", "60s"])?.text()?;
    assert_eq!(host.run(&["exec", "vm", "--", "id", "-un"])?.text()?, "dev\n");

    // The lab's kernel is Debian's for clouds, which has no display.
    let findings = guest.check("hospes-tools doctor")?;
    ensure!(findings.contains("ok      The daemon listens on"), "{findings}");
    ensure!(
        findings.contains("note    The kernel is built without CONFIG_DRM_VIRTIO_GPU: there is"),
        "{findings}"
    );
    ensure!(!findings.contains("CONFIG_VIRTIO_FS"), "{findings}");

    // An upgrade in the middle of a command.
    let child = host
        .command(&[
            "exec",
            "vm",
            "--",
            "sh",
            "-c",
            "echo a; until [ -e /tmp/upgraded ]; do sleep 0.2; done; echo b",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    guest.wait_until("pgrep -f /tmp/[u]pgraded", Duration::from_secs(30))?;
    let daemon = "systemctl show -P MainPID hospes-toolsd";
    let old = guest.check(daemon)?;
    guest.check_within(
        "apt-get -q -y --reinstall install /root/hospes-tools_*.deb",
        Duration::from_secs(120),
    )?;
    assert_ne!(guest.check(daemon)?, old, "the upgrade left the old daemon running");
    guest.check("touch /tmp/upgraded")?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success() && output.stdout == b"a\nb\n", "the command was lost: {output:?}");

    // Its key and the host it trusts outlive a removal, and end with a purge.
    let key = guest.check("ls /var/lib/hospes")?;
    guest.check_within("apt-get -q -y remove hospes-tools", Duration::from_secs(120))?;
    assert_eq!(guest.check("ls /var/lib/hospes")?, key);
    assert_eq!(guest.sh("pgrep -l hospes")?.stdout, "", "something still runs");
    guest.check_within("apt-get -q -y purge hospes-tools", Duration::from_secs(120))?;
    assert_eq!(guest.check(TRACES)?, before);
    Ok(())
}

#[test]
fn its_programs_need_no_library_but_the_c_librarys() -> Result<()> {
    let guest = Guest::boot(with_tools("package-libraries")?)?;
    let needed = guest.check(
        "for f in /usr/bin/hospes-tools /usr/libexec/hospes/*; do ldd $f; done | awk '{ print $1 }' | sort -u",
    )?;
    let foreign: Vec<&str> = needed
        .lines()
        .filter(|name| !["linux-vdso.so.1", "libc.so.6", "libgcc_s.so.1", "libm.so.6"].contains(name))
        .filter(|name| !name.starts_with("/lib/ld-linux"))
        .collect();
    ensure!(foreign.is_empty(), "needs {foreign:?}");
    Ok(())
}
