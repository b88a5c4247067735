#!/bin/sh
# Builds the disk of programs that try shared folders hard: what other people's suites need, as a tree of Debian 13 for
# arm64 that a guest mounts beside its own root and runs by chroot. The guest itself stays as small as it is.
#
#   suites.sh          build it, unless the cache has it, and tell where it is
#   suites.sh --path   tell only where it is or would be
#
# The cache is keyed by this script.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

# What runs on a share: git, a database, a load of every file system call, a meter, a compiler, and who asks for
# attributes; then what they take for granted.
packages=git,sqlite3,stress-ng,fio,gcc,libc6-dev,make,attr,acl,libcap2-bin,python3
base=base-files,base-passwd,bash,coreutils,dash,debianutils,diffutils,findutils,grep,gzip,hostname,mawk,mount
base=$base,ncurses-bin,perl-base,procps,sed,tar,util-linux,xz-utils
# What is built there: a C project of the size that a build under emulation takes half a minute for.
project=zlib
release=trixie
suites=$HOSPES_CACHE/suites
image=$suites/$(sha256sum <"$here/suites.sh" | cut -c 1-16).ext4

if [ "${1:-}" = --path ]; then
    echo "$image"
    exit
fi
mkdir -p "$suites"
exec 9>"$suites/lock"
flock -w 1800 9 || fail "Another run has been building the disk of suites for half an hour: see $suites."
if [ -e "$image" ]; then
    touch "$image"
    say "The disk of suites is in the cache: $image"
    exit
fi
pjdfstest=$(sh "$here/peers.sh" pjdfstest)
fsx=$(sh "$here/peers.sh" fsx)
from=$(mirror)
[ -n "$from" ] || fail "apt on this machine has no Debian source with the component main, and the suites' packages" \
    "come from the same mirror. Add one to /etc/apt/sources.list.d."

build=$suites/build.$$
tree=$build/tree
mkdir -p "$build"
trap 'as_root rm -rf --one-file-system "$build"' EXIT
trap 'exit 130' HUP INT TERM
# What this machine's apt needs to reach the mirror, the emulated one needs too.
apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-)' >"$build/apt.conf" || true
cat >>"$build/apt.conf" <<'CONF'
Acquire::Languages "none";
APT::Install-Recommends "false";
CONF
# Unpacked and not set up: that needs no emulation, and programs that are no services run so.
say "Building the disk of suites: $packages for arm64 (a minute)"
if ! as_root env TMPDIR="$build" mmdebstrap --mode=root --arch=arm64 --variant=extract --format=directory \
    --keyring=/usr/share/keyrings/debian-archive-keyring.gpg --aptopt="$build/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --include="$packages,$base" \
    "$release" "$tree" "$from" >"$build/log" 2>&1 </dev/null; then
    tail -n 30 "$build/log" >&2
    fail "Could not build the disk of suites: mmdebstrap's own words are above."
fi
fetch_debian "$build/source" "$release" arm64 source "$project"
as_root sh -s "$tree" "$build" "$image" "$pjdfstest" "$fsx" <<'ROOT'
set -eu
tree=$1 build=$2 image=$3
mkdir -p "$tree/usr/local/bin" "$tree/usr/src" "$tree/proc" "$tree/dev" "$tree/tmp" "$tree/mnt"
cp "$4" "$5" "$tree/usr/local/bin/"
# What setting up would have made.
cp "$tree/usr/share/base-passwd/passwd.master" "$tree/etc/passwd"
cp "$tree/usr/share/base-passwd/group.master" "$tree/etc/group"
ln -sf mawk "$tree/usr/bin/awk"
ln -sf gcc "$tree/usr/bin/cc"
ln -sf which.debianutils "$tree/usr/bin/which"
cp "$build"/source/*.orig.tar.* "$tree/usr/src/"
rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb
mke2fs -q -t ext4 -O ^has_journal -m 0 -E lazy_itable_init=0,assume_storage_prezeroed=1 -d "$tree" "$build/image" 1536M >/dev/null
resize2fs -M "$build/image" >/dev/null 2>&1
rm -f "$(dirname "$image")"/*.ext4
ROOT
as_root chown "$(id -u):$(id -g)" "$build/image"
mv "$build/image" "$image"
say "The disk of suites is ready: $image"
