#!/bin/sh
# Builds the guest that the lab boots: Debian 13 for arm64 on an ext4 disk, its kernel and a small initramfs.
#
#   image.sh          build it, unless the cache has it, and tell where it is
#   image.sh --path   tell only where it is or would be
#
# The cache is keyed by all that goes in: this script, the list of packages and the files laid over the tree.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

suite=trixie
disk_size=4G
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

content_key() {
    cd "$here"
    { cat image.sh packages init && find guest -type f | LC_ALL=C sort |
        while read -r name; do echo "$name" && cat "$name"; done; } | sha256sum | cut -c 1-16
}
lab=$HOSPES_CACHE/lab
image=$lab/$(content_key)

if [ "${1:-}" = --path ]; then
    echo "$image"
    exit
fi
if [ -e "$image/root.ext4" ]; then
    touch "$image"
    say "The lab's guest is in the cache: $image"
    exit
fi

# The mirror is the one that this machine's own apt uses.
mirror() {
    . /etc/os-release
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="${VERSION_CODENAME:-stable}" '
            ($1 == codename || $1 == "stable" || $1 == "oldstable") && $2 == "main" { print $3; exit }'
}

mkdir -p "$lab"
exec 9>"$lab/lock"
if ! flock -n 9; then
    say "Waiting for another run that is building the lab's guest"
    flock -w 1800 9 || fail "Another run has been building the lab's guest for half an hour: see $lab."
    if [ -e "$image/root.ext4" ]; then
        say "The lab's guest is in the cache: $image"
        exit
    fi
fi

from=$(mirror)
[ -n "$from" ] || fail "apt on this machine has no Debian source with the component main, and the guest's packages" \
    "come from the same mirror. Add one to /etc/apt/sources.list.d."
# Half-made images of runs that were cut off, and images that nothing has used for two weeks.
as_root find "$lab" -mindepth 1 -maxdepth 1 -type d \( -name 'build.*' -o -mtime +14 \) -exec rm -rf --one-file-system {} +

build=$lab/build.$$
tree=$build/tree
mkdir -p "$build/out"
trap 'as_root rm -rf --one-file-system "$build"' EXIT
trap 'exit 130' HUP INT TERM

# What this machine's apt needs to reach the mirror, the emulated one needs too, and only while it installs.
apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-)' >"$build/apt.conf" || true
cat >>"$build/apt.conf" <<'CONF'
Acquire::Languages "none";
APT::Install-Recommends "false";
CONF

say "Building the lab's guest: Debian $suite for arm64, $(grep -c '^[a-z]' "$here/packages") packages and what they need" \
    "(some 4 minutes)"
include=$(sed -n 's/^\([a-z][^ ]*\).*/\1/p' "$here/packages" | paste -sd,)
# What takes long under emulation and is not missed, or is made here: the hardware database (a minute), the host's keys
# for ssh, and (INITRD=No) Debian's general initramfs, which would also boot slower than ours.
host_keys='mkdir -p "$1/etc/ssh"; for type in rsa ecdsa ed25519; do
    ssh-keygen -q -N "" -C guest -t $type -f "$1/etc/ssh/ssh_host_${type}_key"; done'
if ! as_root env INITRD=No TMPDIR="$build" mmdebstrap --mode=root --arch=arm64 --variant=minbase --format=directory \
    --keyring="$keyring" --aptopt="$build/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/lib/udev/hwdb.d/*' \
    --essential-hook="$host_keys" --include="$include" \
    "$suite" "$tree" "$from" >"$build/log" 2>&1 </dev/null; then
    tail -n 30 "$build/log" >&2
    fail "Could not build the lab's guest: mmdebstrap's own words are above."
fi

say "Laying the lab's files over it"
ssh-keygen -q -t ed25519 -N '' -C 'the lab' -f "$build/out/ssh_key"
as_root sh -s "$tree" "$here/guest" "$build/out/ssh_key.pub" <<'ROOT'
set -eu
tree=$1
cp -R --no-preserve=ownership "$2/." "$tree/"
# How it was installed is not how it runs: no mirror, no exclusions.
rm -rf "$tree"/etc/apt/apt.conf.d/99mmdebstrap "$tree"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \
    "$tree"/etc/apt/sources.list "$tree"/etc/apt/sources.list.d/* "$tree"/var/lib/apt/lists/* \
    "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb "$tree"/boot/initrd* "$tree"/initrd*
echo guest >"$tree/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 guest\n::1 localhost\n' >"$tree/etc/hosts"
# Empty, not missing: each clone gets an id of its own, without first-boot work.
: >"$tree/etc/machine-id"
rm -f "$tree/etc/fstab" "$tree/var/lib/dbus/machine-id" "$tree/etc/resolv.conf"
# A graphical target and its ways there would cost a second under emulation, logins on the console another.
units=$tree/etc/systemd/system
ln -sf /usr/lib/systemd/system/multi-user.target "$units/default.target"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer man-db.timer systemd-pstore.service getty@tty1.service serial-getty@ttyAMA0.service \
    serial-getty@hvc0.service systemd-networkd.service systemd-networkd.socket \
    systemd-networkd-wait-online.service; do
    ln -sf /dev/null "$units/$unit"
done
chroot "$tree" /bin/sh -eu <<'GUEST'
useradd --create-home --shell /bin/bash --uid 1000 dev
useradd --create-home --shell /bin/bash --uid 1001 eve
passwd --quiet --lock root
mkdir -p /lab /root/.ssh /home/dev/.ssh /var/log/journal
GUEST
cp "$3" "$tree/root/.ssh/authorized_keys"
cp "$3" "$tree/home/dev/.ssh/authorized_keys"
chown -R 1000:1000 "$tree/home/dev/.ssh"
chmod 700 "$tree/root/.ssh" "$tree/home/dev/.ssh"
# Nothing is to be brought up to date at the first boot: every boot here is a first one.
touch "$tree/etc/.updated" "$tree/var/.updated"
ROOT

say "Making its disk, kernel and initramfs"
as_root sh -s "$tree" "$build" "$here/init" "$disk_size" <<'ROOT'
set -eu
tree=$1 build=$2 init=$3 disk_size=$4
out=$build/out
cp "$tree"/boot/vmlinuz-* "$out/vmlinuz"
cp "$tree"/boot/config-* "$out/kernel.config"
chroot "$tree" dpkg-query -W >"$out/packages"
# The disk's driver is the one module that has to be there before the disk is.
ram=$build/ram
mkdir -p "$ram/dev" "$ram/new"
cp "$tree/bin/busybox" "$ram/busybox"
cp "$init" "$ram/init"
chmod 755 "$ram/init"
xz -dc "$tree"/usr/lib/modules/*/kernel/drivers/block/virtio_blk.ko.xz >"$ram/virtio_blk.ko"
mknod -m 600 "$ram/dev/console" c 5 1 || true
(cd "$ram" && find . | cpio --quiet -o -H newc -R 0:0) >"$out/initramfs"
mke2fs -q -t ext4 -L hospes-root -m 0 -J size=32 -E lazy_itable_init=0,assume_storage_prezeroed=1 \
    -d "$tree" "$out/root.ext4" "$disk_size"
ROOT
as_root chown -R "$(id -u):$(id -g)" "$build/out"
mv "$build/log" "$build/out/build.log"
sed -i "s#$from#the mirror#g" "$build/out/build.log"
mv -T "$build/out" "$image"
say "The lab's guest is ready: $image"
