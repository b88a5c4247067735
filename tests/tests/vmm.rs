//! Our own machine, on the KVM of an emulated arm64 machine: a guest in a guest.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{Guest, GuestSpec, Lab};

/// A guest in an emulated guest.
const BOOT: Duration = Duration::from_secs(180);

/// The inner guest's first program. The console is the serial port that we type to.
const INNER: &str = "/busybox mount -t devtmpfs dev /dev; exec </dev/console >/dev/console 2>&1; echo your word; \
    read line; echo heard $line on $(/busybox nproc) processors; /busybox poweroff -f";

#[test]
#[ignore = "make test-vmm"]
fn a_distributions_kernel_boots_prints_is_typed_to_and_switches_itself_off() -> Result<()> {
    let lab = Lab::find()?;
    let guest = Guest::boot(
        GuestSpec::new("vmm")
            .without_vsock()
            .drop_file(Lab::guest_program("host-hv")?)
            .drop_file(lab.file("vmlinuz"))
            .drop_file(lab.file("initramfs"))
            .qemu(["-machine", "virtualization=on", "-cpu", "neoverse-n1"]),
    )?;
    // The kernel's words behind "--" are its first program's. What is typed before its driver listens is lost, as on
    // any serial port.
    let told = guest.check_within(
        &format!(
            "mkfifo in; timeout {} /lab/host-hv run --kernel /lab/vmlinuz --initrd /lab/initramfs --cpus 2 \
             --memory 256M --append 'console=ttyAMA0 rdinit=/busybox -- sh -c \"{INNER}\"' <in >out 2>&1 & \
             exec 3>in; until grep -q '^your word' out; do kill -0 $! || break; sleep 0.2; done; \
             echo a-word >&3; wait $!; echo status $?; cat out",
            BOOT.as_secs(),
        ),
        BOOT,
    )?;
    for words in [
        "status 0",
        "Booting Linux on physical CPU 0x0000000000",
        "SMP: Total of 2 processors activated",
        "heard a-word on 2 processors",
        "reboot: Power down",
    ] {
        ensure!(told.contains(words), "no \"{words}\" in:\n{told}");
    }
    Ok(())
}
