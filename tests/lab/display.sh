#!/bin/sh
# Builds the guest with a screen: the lab's own, with a kernel that has virtio-gpu and the desktops people run.
#
#   display.sh          build it, unless the cache has it, and tell where it is
#   display.sh --path   tell only where it is or would be
#
# The cache is keyed by all that goes in: the lab's guest, this script and the list of packages.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

suite=trixie
base=$(sh "$here/image.sh" --path)

content_key() {
    cd "$here"
    { basename "$base" && cat display.sh display-packages; } | sha256sum | cut -c 1-16
}
lab=$HOSPES_CACHE/display
image=$lab/$(content_key)

if [ "${1:-}" = --path ]; then
    echo "$image"
    exit
fi
if [ -e "$image/root.ext4" ]; then
    touch "$image"
    say "The guest with a screen is in the cache: $image"
    exit
fi
sh "$here/image.sh"

mkdir -p "$lab"
exec 9>"$lab/lock"
if ! flock -n 9; then
    say "Waiting for another run that is building the guest with a screen"
    flock -w 3600 9 || fail "Another run has been building the guest with a screen for an hour: see $lab."
    if [ -e "$image/root.ext4" ]; then
        say "The guest with a screen is in the cache: $image"
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
out=$build/out
mkdir -p "$tree" "$out"
leave() {
    for at in proc dev run ''; do
        if mountpoint -q "$tree/$at"; then as_root umount "$tree/$at" || true; fi
    done
    mountpoint -q "$tree" || as_root rm -rf --one-file-system "$build"
}
trap leave EXIT
trap 'exit 130' HUP INT TERM

# What this machine's apt needs to reach the mirror, the emulated one needs too, and only while it installs.
apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-)' >"$build/apt.conf" || true
cat >>"$build/apt.conf" <<'CONF'
Acquire::Languages "none";
APT::Install-Recommends "false";
Dpkg::Options { "--force-unsafe-io"; "--path-exclude=/usr/share/man/*"; "--path-exclude=/usr/share/doc/*";
    "--path-exclude=/usr/share/locale/*"; "--path-exclude=/usr/lib/udev/hwdb.d/*"; };
CONF

say "Building the guest with a screen: $(grep -c '^[a-z]' "$here/display-packages") packages and what they need" \
    "(8 to 15 minutes)"
cp --sparse=always "$base/root.ext4" "$out/root.ext4"
as_root mount -o loop "$out/root.ext4" "$tree"
include=$(sed -n 's/^\([a-z][^ ]*\).*/\1/p' "$here/display-packages" | paste -sd ' ')
# INITRD=No: Debian's general initramfs is not missed, ours is made below.
if ! as_root sh -s "$tree" "$from" "$suite" "$build/apt.conf" "$include" >"$build/log" 2>&1 <<'ROOT'; then
set -eu
tree=$1 from=$2 suite=$3 conf=$4 include=$5
mount -t proc proc "$tree/proc"
mount --rbind --make-rslave /dev "$tree/dev"
mount -t tmpfs tmpfs "$tree/run"
cp "$conf" "$tree/etc/apt/apt.conf.d/99lab"
echo "deb $from $suite main" >"$tree/etc/apt/sources.list"
cp --remove-destination /etc/resolv.conf "$tree/etc/resolv.conf" || true
in_tree() { INITRD=No DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$tree" "$@" </dev/null; }
in_tree apt-get update
in_tree apt-get install -y $include
in_tree apt-get clean
in_tree apt-get purge -y 'linux-image*-cloud-arm64' || true
rm -rf "$tree/etc/apt/apt.conf.d/99lab" "$tree/etc/apt/sources.list" "$tree"/var/lib/apt/lists/* \
    "$tree"/var/cache/apt/*.bin "$tree/etc/resolv.conf" "$tree"/boot/initrd* "$tree"/initrd*
umount "$tree/run"
umount -l "$tree/dev"
umount "$tree/proc"
ROOT
    tail -n 30 "$build/log" >&2
    fail "Could not build the guest with a screen: apt's own words are above."
fi

say "Making its kernel and initramfs"
as_root sh -s "$tree" "$build" <<'ROOT'
set -eu
tree=$1 build=$2
out=$build/out
: >"$tree/etc/machine-id"
touch "$tree/etc/.updated" "$tree/var/.updated"
kernel=$(basename "$tree"/boot/vmlinuz-*-arm64 | sed s/vmlinuz-//)
cp "$tree/boot/vmlinuz-$kernel" "$out/vmlinuz"
chroot "$tree" dpkg-query -W >"$out/packages"
# Of this kernel the disk's driver and its file system are modules, with others beneath them.
ram=$build/ram
mkdir -p "$ram/dev" "$ram/new"
cp "$tree/bin/busybox" "$ram/busybox"
modules=$tree/usr/lib/modules/$kernel
wanted() {
    awk -v wanted="$1" -F '[: ]+' '$1 ~ "/" wanted "[.]ko" { for (i = NF; i > 0; i--) if ($i != "") print $i }' \
        "$modules/modules.dep"
}
{
    echo '#!/busybox sh'
    echo '# Of this kernel the disk and its file system are modules.'
    echo '/busybox mount -t devtmpfs dev /dev'
    for module in $(wanted virtio_blk; wanted crc32c_generic; wanted ext4); do
        name=$(basename "$module" .xz)
        [ -e "$ram/$name" ] && continue
        xz -dc "$modules/$module" >"$ram/$name"
        echo "/busybox insmod /$name"
    done
    echo '/busybox mount -t ext4 /dev/vda /new || exec /busybox sh'
    echo '/busybox mount --move /dev /new/dev'
    echo 'exec /busybox switch_root /new /sbin/init'
} >"$ram/init"
chmod 755 "$ram/init"
mknod -m 600 "$ram/dev/console" c 5 1 || true
(cd "$ram" && find . | cpio --quiet -o -H newc -R 0:0) >"$out/initramfs"
umount "$tree"
ROOT
cp "$base/ssh_key" "$base/ssh_key.pub" "$out/"
as_root chown -R "$(id -u):$(id -g)" "$out"
sed "s#$from#the mirror#g" "$build/log" >"$out/build.log"
mv -T "$out" "$image"
say "The guest with a screen is ready: $image"
