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

/// What the inner guest of the devices' test does: a file system on the first disk, a look at the second, the host's
/// folders, a network, and our daemon, for as long as the host has something to say.
const WITH_DEVICES: &str = r#"
mount() { /busybox mount "$@"; }
mount -t devtmpfs dev /dev; exec </dev/console >/dev/console 2>&1
for directory in /proc /sys /mnt /hospes /etc/hospes /state /run /root; do /busybox mkdir -p $directory; done
mount -t proc proc /proc; mount -t sysfs sys /sys
for module in virtio_mmio virtio_blk virtio-rng failover net_failover virtio_net \
    vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do
    /busybox insmod /$module.ko || echo no $module
done
echo "time-inside $(/busybox date +%s)"
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

mount -t virtiofs hospes /hospes || echo no folders
/busybox cat /hospes/given/word /hospes/kept/word
/busybox cp /busybox /hospes/given/copy
echo x 2>/dev/null >/hospes/kept/x && echo kept was written to

/busybox ip address add 10.9.0.2/24 dev eth0; /busybox ip link set eth0 up
echo "eth0: $(/busybox cat /sys/class/net/eth0/address) $(/busybox cat /sys/class/net/eth0/mtu)"
/busybox ping -c 3 10.9.0.1 | /busybox grep received
/busybox wget -q -O - http://10.9.0.1/host-hv | /busybox md5sum
/busybox head -c 3000000 /dev/urandom >/random
/busybox md5sum </random; /busybox nc 10.9.0.1 7 </random

# Nothing happens, until something is typed: the kernel takes random numbers once a minute, and a network is never still.
/busybox rmmod virtio_rng; /busybox ip link set eth0 down
echo resting >/hospes/given/resting; read line

echo root:x:0:0:root:/root:/bin/sh >/etc/passwd; echo root:x:0: >/etc/group
echo 0123456789abcdef0123456789abcdef >/machine-id
/hospes-toolsd --etc /etc/hospes --state /state --run /run --machine-id /machine-id \
    --worker-command /hospes-session >/log 2>&1 &
until /busybox grep -q Listening /log; do kill -0 $! || break; /busybox sleep 0.2; done
echo up >/hospes/given/up
read line
/busybox cat /log
echo "interrupts: $(/busybox grep virtio /proc/interrupts | /busybox awk '{ print $2 "/" $NF }' | /busybox xargs)"
/busybox poweroff -f
"#;

/// What the machine around it does: runs it, and talks to the daemon in it.
const BESIDE: &str = r#"
/busybox mkdir /more /given /kept; echo from-the-host >/given/word; echo only-to-be-read >/kept/word
/busybox insmod /tun.ko; /busybox mkdir -p /dev/net /proc; /busybox mount -t proc proc /proc; /busybox mkfifo /in
[ -e /dev/net/tun ] || /busybox mknod /dev/net/tun c 10 200
/cable /network tap0 >/cabled & until /busybox grep -q tap0 /cabled; do kill -0 $! || break; /busybox sleep 0.1; done
/busybox ip address add 10.9.0.1/24 dev tap0; /busybox ip link set tap0 mtu 9000 up; /busybox ip link set lo up
/busybox httpd -p 10.9.0.1:80 -h /
/busybox nc -l -p 7 -e /busybox md5sum &
/busybox rm /tun.ko; echo "time-before $(/busybox date +%s)"
/busybox mv /*.ko /inner /hospes-toolsd /hospes-session /more; /busybox cp -a /lib /more
(cd /more && /busybox find . | /busybox cpio -o -H newc 2>/dev/null) >>/initramfs
/busybox truncate -s 64M /disk
echo a-sector >/second.raw; /busybox truncate -s 1M /second.raw
/host-hv run --kernel /vmlinuz --initrd /initramfs --cpus 2 --memory 384M --disk /disk --disk /second.raw:ro \
    --net /network,mac=02:00:00:00:00:07,mtu=9000 --share /given --share kept=/kept:ro --uds /vsock \
    --append 'console=ttyAMA0 quiet rdinit=/busybox -- sh /inner' </in >/out 2>&1 &
machine=$!
exec 3>/in
until [ -e /given/resting ]; do kill -0 $machine || break; /busybox sleep 0.2; done
# How often each thread but the vCPUs' has slept.
sleeps() {
    for task in /proc/$machine/task/*; do
        read name <$task/comm
        case $name in vcpu*) ;; *) echo $name $(/busybox grep ^voluntary_ctxt $task/status) ;; esac
    done
}
/busybox ip link set tap0 down
# A guest's last requests may still come; what ticks does so in each of these.
for attempt in 1 2 3 4 5; do
    sleeps >/rest; /busybox sleep 4; sleeps >/rested
    /busybox cmp -s /rest /rested && break
done
echo "$(/busybox wc -l </rest) threads rest"; /busybox cmp /rest /rested && echo no thread woke up; /busybox diff /rest /rested
/busybox ip link set tap0 up; echo on >&3
until [ -e /given/up ]; do kill -0 $machine || break; /busybox sleep 0.2; done
export HOME=/
/hospes add inner unix:/vsock --user root
/hospes exec inner -- /busybox sh -c 'echo "said inside: $(/busybox uname -m), $(/busybox nproc) processors"; exit 7'
echo exec $?
/busybox head -c 3000000 /host-hv | /hospes exec inner -- /busybox md5sum
/busybox head -c 3000000 /host-hv | /busybox md5sum
/busybox md5sum </host-hv; echo "time-after $(/busybox date +%s)"
echo over >&3
wait $machine
echo status $?
/busybox cat /out
/busybox cmp /busybox /given/copy && echo the copy is the same
[ -e /vsock ] && echo the socket is still there
echo "$(/busybox grep -c 'a word that lasts' /disk) word, $(/busybox du -m /disk | /busybox cut -f1) MiB"
/host-hv run --kernel /vmlinuz --disk /nowhere; echo status $?
# One that nobody reads what is typed to, and that is told to end.
/busybox mkfifo /typed; (/busybox head -c 100000 /dev/zero; exec /busybox sleep 1000) >/typed &
/host-hv run --kernel /vmlinuz --initrd /initramfs --uds /vsock --append 'rdinit=/busybox -- sleep 1000' \
    </typed >/out 2>&1 &
machine=$!
until [ -e /vsock ]; do kill -0 $machine || break; /busybox sleep 0.1; done
/busybox sleep 1; kill -TERM $machine; wait $machine; echo told to end: $?
[ -e /vsock ] && echo the socket is still there
"#;

/// Modules of the lab's kernel that the inner guest brings.
const MODULES: [&str; 8] = [
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/virtio/virtio_mmio",
    "drivers/char/hw_random/virtio-rng",
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
];

#[test]
fn a_guest_uses_all_its_devices() -> Result<()> {
    let files = tempfile::tempdir()?;
    let programs = ["host-hv", "hospes", "hospes-toolsd", "hospes-session", "cable"];
    let mut brought = programs.iter().map(|name| Lab::guest_program(name)).collect::<Result<Vec<_>>>()?;
    for module in MODULES.into_iter().chain(["drivers/net/tun"]) {
        let name = module.rsplit('/').next().unwrap_or(module);
        let path = files.path().join(format!("{name}.ko"));
        fs::write(&path, kernel_module(module)?)?;
        brought.push(path);
    }
    let inner = files.path().join("inner");
    fs::write(&inner, WITH_DEVICES)?;
    brought.push(inner);

    // Archives stand one behind the other again: the lab's, and what the inner guest needs besides. Quiet, so that the
    // kernel's words do not stand within the guest's.
    let told = run_on_kvm("vmm-devices", &brought, BESIDE, PATIENCE)?;
    for words in [
        "random numbers by virtio_rng.0, 1000 bytes",
        "vda: 131072 0 disk write back 1073741824",
        "vdb: 2048 1 second.raw",
        "vdb begins with a-sector",
        "copy 1 is the same",
        "copy 8 is the same",
        "trimmed",
        "eth0: 02:00:00:00:00:07 9000",
        "3 packets received",
        "from-the-host",
        "only-to-be-read",
        "no thread woke up",
        "said inside: aarch64, 2 processors",
        "exec 7",
        "reboot: Power down",
        "status 0",
        "the copy is the same",
        "1 word, ",
        "An empty one of 20 GiB is made by: truncate",
        "status 1",
        "told to end: 0",
    ] {
        ensure!(told.contains(words), "no \"{words}\" in:\n{told}");
    }
    // What was discarded takes no room here: the copies alone had taken more.
    let (_, room) = told.split_once("1 word, ").context("the disk's size")?;
    let room: u32 = room.split(' ').next().unwrap_or_default().parse()?;
    ensure!(room < 10, "the disk takes {room} MiB");
    // What went through the guest's vsock, and through its network both ways, and the same bytes beside it.
    let sums: Vec<&str> = told.lines().filter_map(|line| line.split_once("  -")).map(|sum| sum.0).collect();
    let same = sums.len() == 6 && sums.chunks(2).all(|pair| pair[0] == pair[1] && pair[0].len() == 32);
    ensure!(same, "sums {sums:?} in:\n{told}");
    let time = |word| -> Result<u64> {
        let (_, rest) = told.split_once(word).with_context(|| format!("no \"{word}\" in:\n{told}"))?;
        Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
    };
    let (before, inside, after) = (time("time-before ")?, time("time-inside ")?, time("time-after ")?);
    ensure!((before..=after).contains(&inside), "the guest's clock shows {inside}, not {before} to {after}");
    for words in [
        "no virtio",
        "no failover",
        "no net_failover",
        "no vsock",
        "no vmw",
        "no file system",
        "no folders",
        "vdb was written to",
        "kept was written to",
        "the socket is still there",
        "I/O error",
        "EXT4-fs error",
    ] {
        ensure!(!told.contains(words), "\"{words}\" in:\n{told}");
    }
    Ok(())
}
