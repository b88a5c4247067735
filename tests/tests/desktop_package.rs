//! The package of the guest's desktop: a helper for everybody who is logged in, from its installation on.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{Guest, Lab, tools_started, with_tools};

const WAIT: Duration = Duration::from_secs(60);
const APT: Duration = Duration::from_secs(300);

const TRACES: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /root \\) -prune -o \
                      -iname '*hospes-desktop*' ! -path '/var/log/*' ! -path '/usr/local/*' -print | sort";

/// A script run by a user who is logged in.
fn user(name: &str, script: &str) -> String {
    format!("runuser -u {name} -- env XDG_RUNTIME_DIR=/run/user/$(id -u {name}) bash -ec '{script}'")
}

#[test]
fn it_holds_the_helper_its_manual_and_its_unit_and_nothing_else() -> Result<()> {
    let output = Command::new("dpkg-deb").arg("--contents").arg(Lab::desktop_package()?).output()?;
    let list = String::from_utf8(output.stdout)?;
    let files: Vec<&str> = list
        .lines()
        .filter(|line| !line.ends_with('/'))
        .filter_map(|line| line.split_whitespace().next_back())
        .collect();
    let wanted = [
        "./usr/bin/hospes-desktop",
        "./usr/lib/systemd/user/hospes-desktop.service",
        "./usr/share/doc/hospes-desktop/changelog.gz",
        "./usr/share/doc/hospes-desktop/copyright",
        "./usr/share/man/man1/hospes-desktop.1.gz",
    ];
    assert_eq!(files, wanted);
    ensure!(
        !list.lines().any(|line| line.get(..10).is_some_and(|mode| mode.contains('s'))),
        "setuid:\n{list}"
    );
    Ok(())
}

#[test]
fn who_is_logged_in_has_a_helper_at_once_and_who_comes_later_too() -> Result<()> {
    let guest = Guest::boot(with_tools("desktop-package")?)?;
    tools_started(&guest)?;
    guest.check("loginctl enable-linger dev")?;
    guest.wait_until(&user("dev", "systemctl --user is-active default.target"), WAIT)?;
    let before = guest.check(TRACES)?;
    guest.install(&[Lab::desktop_package()?])?;
    let active = "systemctl --user is-active hospes-desktop";
    assert_eq!(guest.check(&user("dev", active))?, "active\n");
    assert_eq!(guest.check("systemctl --global is-enabled hospes-desktop")?, "enabled\n");
    let needed = guest.check("ldd /usr/bin/hospes-desktop | awk '{ print $1 }'")?;
    let known = ["linux-vdso.so.1", "libc.so.6", "libgcc_s.so.1", "libm.so.6"];
    let foreign = needed.lines().find(|name| !known.contains(name) && !name.starts_with("/lib/ld-linux"));
    assert_eq!(foreign, None);

    // It sleeps: there is no desktop here.
    let pid = guest.check(&user("dev", "systemctl --user show -P MainPID hospes-desktop"))?;
    let pid = pid.trim();
    let switches = format!("grep ctxt_switches /proc/{pid}/status");
    guest.check("sleep 2")?;
    let earlier = guest.check(&switches)?;
    guest.check("sleep 5")?;
    assert_eq!(guest.check(&switches)?, earlier, "it woke up");

    // One that was killed is replaced, and so is one that was upgraded.
    guest.check(&format!("kill -KILL {pid}"))?;
    let another =
        format!("test \"$({})\" -gt 0", user("dev", "systemctl --user show -P MainPID hospes-desktop"));
    guest.wait_until(&another, WAIT)?;
    let old = guest.check("pgrep -x hospes-desktop")?;
    guest.check_within("apt-get -q -y --reinstall install /root/hospes-desktop_*.deb", APT)?;
    let new = guest.check("pgrep -x hospes-desktop")?;
    ensure!(new.lines().count() == 1 && new != old, "{old} {new}");

    guest.check_within("apt-get -q -y purge hospes-desktop", APT)?;
    assert_eq!(guest.sh("pgrep -x hospes-desktop")?.stdout, "", "a helper outlives the package");
    assert_eq!(guest.check(TRACES)?, before);
    Ok(())
}
