//! Our own machine, on the KVM of an emulated arm64 machine: a guest in a guest.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Lab, kernel_module, run_on_kvm};

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

/// What the inner guest of the disks' test does: a file system on the first, a look at the second.
const WITH_DISKS: &str = r#"
mount() { /busybox mount "$@"; }
mount -t devtmpfs dev /dev; exec </dev/console >/dev/console 2>&1
for directory in /proc /sys /mnt; do /busybox mkdir -p $directory; done
mount -t proc proc /proc; mount -t sysfs sys /sys
for module in virtio_mmio virtio_blk virtio-rng; do /busybox insmod /$module.ko || echo no $module; done
echo "random numbers by $(/busybox cat /sys/class/misc/hw_random/rng_current)," \
    "$(/busybox head -c 1000 /dev/hwrng | /busybox wc -c) bytes"
for disk in vda vdb; do
    cd /sys/block/$disk
    echo "$disk:" $(for of in size ro serial queue/write_cache queue/discard_max_bytes; do /busybox cat $of; echo; done)
done
cd /
echo "vdb begins with $(/busybox head -c 8 /dev/vdb)"
echo x 2>/dev/null >/dev/vdb && echo vdb was written to
/busybox mke2fs /dev/vda >/dev/null && mount -t ext4 /dev/vda /mnt || echo no file system
for copy in 1 2 3 4 5 6 7 8; do /busybox cat /busybox >/mnt/$copy; done
/busybox umount /mnt; echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/vda /mnt
for copy in 1 2 3 4 5 6 7 8; do /busybox cmp /busybox /mnt/$copy && echo copy $copy is the same; done
/busybox rm /mnt/[1-8]; /busybox sync
/busybox fstrim /mnt && echo trimmed
echo a word that lasts >/mnt/word; /busybox umount /mnt
echo "interrupts: $(/busybox grep virtio /proc/interrupts | /busybox awk '{ print $2 "/" $NF }' | /busybox xargs)"
/busybox poweroff -f
"#;

#[test]
fn a_guest_uses_its_disks_and_the_hosts_random_numbers() -> Result<()> {
    let files = tempfile::tempdir()?;
    let mut brought = vec![Lab::guest_program("host-hv")?];
    for module in ["drivers/virtio/virtio_mmio", "drivers/char/hw_random/virtio-rng"] {
        let name = module.rsplit('/').next().unwrap_or(module);
        let path = files.path().join(format!("{name}.ko"));
        fs::write(&path, kernel_module(module)?)?;
        brought.push(path);
    }
    let inner = files.path().join("inner");
    fs::write(&inner, WITH_DISKS)?;
    brought.push(inner);

    // Archives stand one behind the other again: the lab's, and what the inner guest needs besides. Quiet, so that the
    // kernel's words do not stand within the guest's.
    let script = r#"/busybox mkdir /more
         /busybox mv /virtio_mmio.ko /virtio-rng.ko /inner /more
         (cd /more && /busybox find . | /busybox cpio -o -H newc 2>/dev/null) >>/initramfs
         /busybox truncate -s 64M /disk
         echo a-sector >/second.raw; /busybox truncate -s 1M /second.raw
         /host-hv run --kernel /vmlinuz --initrd /initramfs --cpus 2 --memory 256M --disk /disk --disk /second.raw:ro \
             --append 'console=ttyAMA0 quiet rdinit=/busybox -- sh /inner' </dev/null 2>&1
         echo status $?
         echo "$(/busybox grep -c 'a word that lasts' /disk) word, $(/busybox du -m /disk | /busybox cut -f1) MiB"
         /host-hv run --kernel /vmlinuz --disk /nowhere; echo status $?"#;
    let told = run_on_kvm("vmm-disks", &brought, script, PATIENCE)?;
    for words in [
        "random numbers by virtio_rng.0, 1000 bytes",
        "vda: 131072 0 disk write back 1073741824",
        "vdb: 2048 1 second.raw",
        "vdb begins with a-sector",
        "copy 1 is the same",
        "copy 8 is the same",
        "trimmed",
        "reboot: Power down",
        "status 0",
        "1 word, ",
        "An empty one of 20 GiB is made by: truncate",
        "status 1",
    ] {
        ensure!(told.contains(words), "no \"{words}\" in:\n{told}");
    }
    // What was discarded takes no room here: the copies alone had taken more.
    let (_, room) = told.split_once("1 word, ").context("the disk's size")?;
    let room: u32 = room.split(' ').next().unwrap_or_default().parse()?;
    ensure!(room < 10, "the disk takes {room} MiB");
    for words in ["no virtio", "no file system", "vdb was written to", "I/O error", "EXT4-fs error"] {
        ensure!(!told.contains(words), "\"{words}\" in:\n{told}");
    }
    Ok(())
}
