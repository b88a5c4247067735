//! A guest boots, is what the other tests take it for, and powers off.

use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use integration_tests::{Guest, GuestSpec, SharedGuest};

const THIS_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/boot.rs");

static GUEST: SharedGuest = SharedGuest::new(|| Ok(GuestSpec::new("boot").cold().ssh().drop_file(THIS_FILE)));

static RESUMED: SharedGuest =
    SharedGuest::new(|| Ok(GuestSpec::new("boot-resumed").ssh().drop_file(THIS_FILE)));

#[test]
fn the_guest_reaches_multi_user_with_no_failed_unit() -> Result<()> {
    let guest = GUEST.get()?;
    assert_eq!(guest.check("systemctl is-active multi-user.target")?, "active\n");
    assert_eq!(guest.check("systemctl --failed --plain --no-legend")?, "");
    Ok(())
}

#[test]
fn the_vsock_device_brings_its_module_and_its_address() -> Result<()> {
    // IOCTL_VM_SOCKETS_GET_LOCAL_CID
    let ask = r#"perl -e 'open(my $v, "<", "/dev/vsock") or die $!; my $cid = pack("L", 0);
        ioctl($v, 0x7b9, $cid) or die $!; print unpack("L", $cid)'"#;
    for guest in [GUEST.get()?, RESUMED.get()?] {
        guest.wait_until("lsmod | grep -q '^vmw_vsock_virtio_transport '", Duration::from_secs(30))?;
        assert_eq!(guest.check(ask)?, guest.cid().to_string());
    }
    Ok(())
}

#[test]
fn the_shell_tells_status_and_both_streams_apart() -> Result<()> {
    let output = GUEST.get()?.sh("echo out; echo err >&2; exit 7")?;
    assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (7, "out\n", "err\n"));
    Ok(())
}

#[test]
fn a_slow_command_holds_up_no_other() -> Result<()> {
    let guest = GUEST.get()?;
    thread::scope(|scope| -> Result<()> {
        let slow = scope.spawn(|| guest.sh("until [ -e /run/go ]; do sleep 0.1; done; echo went"));
        guest.check("touch /run/go")?;
        assert_eq!(slow.join().expect("the thread does not panic")?.stdout, "went\n");
        Ok(())
    })
}

#[test]
fn a_command_ends_at_its_limit() -> Result<()> {
    assert_eq!(GUEST.get()?.sh_within("sleep 1000", Duration::from_secs(1))?.status, 124);
    Ok(())
}

#[test]
fn a_file_arrives_with_its_bytes_and_mode() -> Result<()> {
    let guest = GUEST.get()?;
    let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(3 << 20).collect();
    guest.put("/root/bytes", 0o640, &bytes)?;
    guest.put("/root/copy of it", 0o600, &bytes)?;
    assert_eq!(
        guest.check("stat -c '%s %a' /root/bytes; cmp /root/bytes '/root/copy of it'")?,
        "3145728 640\n"
    );
    Ok(())
}

#[test]
fn dropped_files_are_in_lab() -> Result<()> {
    for guest in [GUEST.get()?, RESUMED.get()?] {
        assert_eq!(guest.check("cat /lab/boot.rs")?, std::fs::read_to_string(THIS_FILE)?);
    }
    Ok(())
}

#[test]
fn two_people_have_accounts_and_root_has_no_password() -> Result<()> {
    let guest = GUEST.get()?;
    let people = "getent passwd | awk -F: '$3 >= 1000 && $3 < 60000 { print $1, $3, $6 }'";
    assert_eq!(guest.check(people)?, "dev 1000 /home/dev\neve 1001 /home/eve\n");
    assert_eq!(guest.check("passwd --status root | cut -d ' ' -f 2")?, "L\n");
    Ok(())
}

#[test]
fn ssh_reaches_the_guest() -> Result<()> {
    for guest in [GUEST.get()?, RESUMED.get()?] {
        let output = guest.ssh("dev")?.arg("id -un").output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, b"dev\n");
    }
    Ok(())
}

#[test]
fn a_resumed_guest_has_the_time_and_random_numbers_of_its_own() -> Result<()> {
    let guest = RESUMED.get()?;
    let other = Guest::boot(GuestSpec::new("boot-other").without_vsock())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let told: u64 = other.check("date +%s")?.trim().parse()?;
    assert!(told.abs_diff(now) < 60, "the guest says {told}, and it is {now}");
    let random = "head -c 16 /dev/urandom | od -An -tx1";
    assert_ne!(guest.check(random)?, other.check(random)?);
    Ok(())
}

#[test]
fn a_guest_pauses_resets_and_powers_off() -> Result<()> {
    let guest = Guest::boot(GuestSpec::new("boot-pause").without_vsock())?;
    guest.pause()?;
    assert!(guest.sh_within("true", Duration::from_secs(1)).is_err());
    guest.resume()?;
    assert_eq!(guest.check("echo again")?, "again\n");

    let first = guest.check("cat /proc/sys/kernel/random/boot_id")?;
    guest.reset()?;
    assert_ne!(guest.check("cat /proc/sys/kernel/random/boot_id")?, first);

    // Its shell goes down with the system: whether it still answers does not matter.
    let _ = guest.sh("systemctl poweroff");
    guest.wait_power_off()?;
    assert!(guest.console().contains("reboot: Power down"));
    let pid = guest.qemu_pid();
    drop(guest);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}
