//! The host's package: what is in it, and a user of a Debian machine who installs it. The machine is a booted guest,
//! which here is its own host over `AF_VSOCK`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{Guest, GuestSpec, Lab, tools_started, with_tools};

const WAIT: Duration = Duration::from_secs(60);

const TRACES: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /root -o -path /home \\) -prune -o \
                      -iname '*hospes*' ! -path '*hospes-tools*' ! -path '/var/log/*' ! -path '/usr/local/*' \
                      ! -path '/var/lib/hospes' ! -path '/run/*' ! -path '*/hospes-session*' ! -path '/etc/hospes' \
                      ! -path '/usr/libexec/hospes*' ! -path '*hospes-toolsd*' -print | sort";

/// A script run by a user who is logged in.
fn as_dev(script: &str) -> String {
    format!(
        "runuser -u dev -- env -C /home/dev HOME=/home/dev XDG_RUNTIME_DIR=/run/user/$(id -u dev) bash -ec '{script}'"
    )
}

#[test]
fn it_holds_the_command_its_manual_and_its_units_and_nothing_else() -> Result<()> {
    let output = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(Lab::host_package()?).output()?;
    let tree = tempfile::tempdir()?;
    let archive = tree.path().join("tar");
    std::fs::write(&archive, output.stdout)?;
    let list = Command::new("tar").arg("-tf").arg(&archive).output()?;
    let list = String::from_utf8(list.stdout)?;
    let files: Vec<&str> = list.lines().filter(|name| !name.ends_with('/')).collect();
    for wanted in [
        "./usr/bin/hospes",
        "./usr/lib/systemd/user/hospes-agent.service",
        "./usr/lib/systemd/user/hospes-agent.socket",
        "./usr/share/bash-completion/completions/hospes",
        "./usr/share/doc/hospes/changelog.gz",
        "./usr/share/doc/hospes/copyright",
        "./usr/share/fish/vendor_completions.d/hospes.fish",
        "./usr/share/zsh/vendor-completions/_hospes",
        "./usr/share/man/man1/hospes.1.gz",
        "./usr/share/man/man1/hospes-exec.1.gz",
    ] {
        ensure!(files.contains(&wanted), "{wanted} is missing:\n{list}");
    }
    for file in files {
        let known = ["./usr/bin/hospes", "./usr/lib/systemd/user/", "./usr/share/"];
        ensure!(known.iter().any(|place| file.starts_with(place)), "{file} has no business there");
    }
    Ok(())
}

#[test]
fn a_user_who_installs_it_has_an_agent_when_one_is_first_asked_for() -> Result<()> {
    let guest = Guest::boot(with_tools("host-package")?)?;
    tools_started(&guest)?;
    guest.check("loginctl enable-linger dev")?;
    guest.wait_until(&as_dev("systemctl --user is-active sockets.target"), WAIT)?;
    let before = guest.check(TRACES)?;
    guest.install(&[Lab::host_package()?])?;
    let unit =
        |unit: &str, state: &str| as_dev(&format!("test \"$(systemctl --user is-active {unit})\" = {state}"));

    // On for those who are logged in, and nothing runs yet.
    guest.check(&as_dev("systemctl --user is-enabled hospes-agent.socket"))?;
    guest.check(&unit("hospes-agent.socket", "active"))?;
    guest.check(&unit("hospes-agent.service", "inactive"))?;
    assert_eq!(guest.check("stat -c %U:%a /run/user/$(id -u dev)/hospes/agent.sock")?, "dev:600\n");
    assert_eq!(guest.check(&as_dev("hospes list --json"))?, "{\"vms\":[],\"announced\":[]}\n");
    guest.check(&unit("hospes-agent.service", "active"))?;

    // The guest is its own VM. Its daemon takes nobody but the host, and says so.
    guest.check("modprobe vsock_loopback")?;
    let cid = guest.cid();
    guest.check(&as_dev(&format!("hospes add me vsock:{cid} --user dev")))?;
    let refused = guest.sh(&as_dev("hospes exec me -- true"))?;
    ensure!(
        refused.status == 125 && refused.stderr.contains("Only the host may connect here"),
        "{refused:?}"
    );

    // Another daemon, with the port led to it, is one that does.
    guest.check(
        "systemctl stop hospes-toolsd
         systemd-run -q -u lab-toolsd /usr/libexec/hospes/hospes-toolsd --listen unix:/run/lab.sock
         until [ -S /run/lab.sock ]; do sleep 0.1; done
         systemd-run -q -u lab-port socat VSOCK-LISTEN:650,fork UNIX-CONNECT:/run/lab.sock
         until ss -l --vsock | grep -q :650; do sleep 0.1; done",
    )?;
    assert_eq!(guest.check(&as_dev("hospes exec me -- id -un"))?, "dev\n");
    guest.check(&as_dev(
        "head -c 3000000 /dev/urandom >x; hospes exec me -- cat <x | cmp - x
         hospes cp x me:y; cmp x y",
    ))?;
    // With the agent's ticket too: it has a session over the same kind of socket.
    guest.wait_until(&as_dev("hospes list --json | grep -q connected"), WAIT)?;
    assert_eq!(guest.check(&as_dev("hospes exec me -- echo here"))?, "here\n");
    let log = guest.check(&as_dev("hospes logs me --host"))?;
    ensure!(log.contains("connected, key SHA256:"), "{log}");
    // Nobody listens on the port: told at once, and why.
    guest.check("systemctl stop lab-port lab-toolsd")?;
    let gone = guest.sh(&as_dev("hospes exec me -- true"))?;
    ensure!(gone.status == 125 && gone.stderr.contains(&format!("vsock:{cid}")), "{gone:?}");

    // An upgrade replaces the agent; a removal ends it, and a purge leaves nothing but the users' own files.
    let agent = as_dev("systemctl --user show -P MainPID hospes-agent.service");
    let old = guest.check(&agent)?;
    let upgrade = "apt-get -q -y --reinstall install /root/hospes_*.deb";
    guest.check_within(upgrade, Duration::from_secs(120))?;
    assert_ne!(guest.check(&agent)?, old, "the upgrade left the old agent running");
    guest.check_within("apt-get -q -y purge hospes", Duration::from_secs(120))?;
    assert_eq!(guest.sh("pgrep -x hospes")?.stdout, "", "the agent outlives the package");
    assert_eq!(guest.check(TRACES)?, before);
    guest.check("test -e /home/dev/.config/hospes/vms/me.toml").map(drop)
}

#[test]
fn an_administrator_who_switches_the_socket_off_finds_it_off_after_an_upgrade() -> Result<()> {
    let guest = Guest::boot(GuestSpec::new("host-package-off").without_vsock())?;
    guest.install(&[Lab::host_package()?])?;
    let enabled = "systemctl --global is-enabled hospes-agent.socket";
    assert_eq!(guest.check(enabled)?, "enabled\n");
    guest.check("systemctl --global disable hospes-agent.socket")?;
    guest.check_within("apt-get -q -y --reinstall install /root/hospes_*.deb", Duration::from_secs(120))?;
    assert_eq!(guest.sh(enabled)?.stdout, "disabled\n");
    Ok(())
}
