//! Our own machine, on the KVM of an emulated arm64 machine: a guest in a guest.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{Lab, run_on_kvm};

/// A guest in an emulated guest, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// The inner guest's first program. The console is the serial port that we type to.
const INNER: &str = "/busybox mount -t devtmpfs dev /dev; exec </dev/console >/dev/console 2>&1; echo your word; \
    read line; echo heard $line on $(/busybox nproc) processors; /busybox poweroff -f";

#[test]
fn a_distributions_kernel_boots_prints_is_typed_to_and_switches_itself_off() -> Result<()> {
    // The kernel's words behind "--" are its first program's. What is typed before its driver listens is lost, as on
    // any serial port.
    let script = format!(
        "/busybox mkfifo in
         /host-hv run --kernel /vmlinuz --initrd /initramfs --cpus 2 --memory 256M \
             --append 'console=ttyAMA0 rdinit=/busybox -- sh -c \"{INNER}\"' <in >out 2>&1 &
         exec 3>in
         until /busybox grep -q '^your word' out; do kill -0 $! || break; /busybox sleep 0.2; done
         echo a-word >&3
         wait $!
         echo status $?
         /busybox cat out"
    );
    let told = run_on_kvm("vmm", &[Lab::guest_program("host-hv")?], &script, PATIENCE)?;
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
