#!/bin/sh
# Applies the patches to the newest kernel of a Debian release and builds its virtio-gpu as a module for arm64:
#
#     kernel-patches/build.sh [trixie|sid] [--out DIR]
#
# The compiler is that release's own, in a tree that is removed at the end: a module has to be built by what built its
# kernel. The last line it prints is the module's path.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
workspace=$(cd "$here/.." && pwd)
. "$workspace/tests/lab/env.sh"

release=trixie out=${CARGO_TARGET_DIR:-$workspace/target}/kernel
while [ $# -gt 0 ]; do
    case $1 in
    trixie | sid) release=$1 ;;
    --out) out=$2 && shift ;;
    *) fail "Unknown argument $1: see the head of $0" ;;
    esac
    shift
done
for tool in mmdebstrap dpkg-deb patch; do
    command -v "$tool" >/dev/null || fail "$tool is missing: run \`make setup\` first"
done
native=$(dpkg --print-architecture)

work=$(mktemp -d)
trap 'as_root rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' HUP INT TERM
run() {
    "$@" >"$work/log" 2>&1 </dev/null || {
        tail -n 30 "$work/log" >&2
        fail "$1 failed: its own words are above."
    }
}
depends() {
    dpkg-deb -f "$1" Depends | tr ',|' '\n\n' | sed 's/^ *//; s/[ (].*//' | grep -E "$2" | head -n 1
}

say "Fetching the kernel of Debian $release: its headers and its source (160 MiB)"
fetch_debian "$work/meta" "$release" arm64 download linux-headers-arm64
headers=$(depends "$work"/meta/linux-headers-arm64_*.deb '^linux-headers-[0-9]')
kernel=${headers#linux-headers-}
fetch_debian "$work/headers" "$release" arm64 download "$headers"
compiler=$(depends "$work/headers/$headers"_*.deb '^gcc-[0-9]+' | sed 's/^\(gcc-[0-9]*\).*/\1/')
common=$(depends "$work/headers/$headers"_*.deb '^linux-headers-.*-common$')
kbuild=$(depends "$work/headers/$headers"_*.deb '^linux-kbuild-')
version=$(echo "$kernel" | sed 's/^\([0-9]*\.[0-9]*\).*/\1/')
fetch_debian "$work/parts" "$release" "$native" download "$common" "$kbuild" "linux-source-$version"

say "Making a tree with $compiler"
# What this machine's apt needs to reach the mirror, the tree's needs too.
apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-)' >"$work/apt.conf" || true
echo 'APT::Install-Recommends "false";' >>"$work/apt.conf"
run as_root env TMPDIR="$work" mmdebstrap --mode=root --variant=apt --format=directory \
    --keyring=/usr/share/keyrings/debian-archive-keyring.gpg --aptopt="$work/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --include="$compiler-aarch64-linux-gnu,make,pahole,libelf1t64" \
    "$release" "$work/tree" "$(mirror)"
for deb in "$work/headers/$headers"_*.deb "$work/parts/$common"_*.deb "$work/parts/$kbuild"_*.deb; do
    run as_root dpkg-deb -x "$deb" "$work/tree"
done

say "Applying the patches to linux-source-$version"
mkdir "$work/source"
dpkg-deb --fsys-tarfile "$work/parts/linux-source-$version"_*.deb |
    tar -x --to-stdout "./usr/src/linux-source-$version.tar.xz" | xz -dc |
    tar -x -C "$work/source" --strip-components=1 --wildcards '*/drivers/gpu/drm/virtio/*'
for patch in "$here"/*.patch; do
    run patch --directory="$work/source" --strip=1 --fuzz=0 --forward --input="$patch"
done
# The driver's trace points name their header from the kernel's root.
module=/usr/src/$common/drivers/gpu/drm/virtio
as_root mkdir -p "$work/tree$module"
as_root cp -R "$work/source/drivers/gpu/drm/virtio/." "$work/tree$module"

say "Building virtio-gpu for $kernel"
run as_root chroot "$work/tree" make -C "/usr/src/$headers" M="$module" CONFIG_DRM_VIRTIO_GPU=m modules
mkdir -p "$out/$kernel"
cp "$work/tree$module/virtio-gpu.ko" "$out/$kernel/"
echo "$out/$kernel/virtio-gpu.ko"
