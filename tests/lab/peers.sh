#!/bin/sh
# Fetches what Hospes is measured beside and does not ship: `peers.sh vsock-device` and `peers.sh vsock-test` make sure
# that the peer is in the cache, and print its path.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

peers=$HOSPES_CACHE/peers
device_version=0.3.0

mkdir -p "$peers"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
    "$@" >"$log" 2>&1 </dev/null || {
        tail -n 20 "$log" >&2
        fail "$1 failed: its own words are above."
    }
}

case ${1:-} in
vsock-device)
    program=$peers/vhost-device-vsock-$device_version/bin/vhost-device-vsock
    if [ ! -x "$program" ]; then
        say "Building vhost-device-vsock $device_version, the vsock device's peer" >&2
        run env CARGO_TARGET_DIR="$peers/build" \
            cargo install --quiet --locked --root "$peers/vhost-device-vsock-$device_version" \
            "vhost-device-vsock@$device_version"
        rm -rf "$peers/build"
    fi
    ;;
vsock-test)
    program=$peers/vsock_test
    if [ ! -x "$program" ]; then
        say "Building the kernel's own test of vsock (linux-source-6.1, 133 MiB)" >&2
        tree=$(mktemp -d)
        trap 'rm -rf "$log" "$tree"' EXIT
        run as_root apt-get update
        cd "$tree"
        run apt-get download linux-source-6.1
        dpkg-deb --fsys-tarfile linux-source-6.1_*.deb | tar -x ./usr/src/linux-source-6.1.tar.xz
        tar -x -f usr/src/linux-source-6.1.tar.xz --strip-components=1 --wildcards '*/tools/testing/vsock/*' \
            '*/tools/include/*'
        cd tools/testing/vsock
        run aarch64-linux-gnu-gcc -O2 -D_GNU_SOURCE -I. -I../../include -Wno-pointer-sign -fno-strict-aliasing -o vsock_test \
            vsock_test.c timeout.c control.c util.c
        mv vsock_test "$program"
    fi
    ;;
*)
    fail "usage: peers.sh vsock-device | vsock-test"
    ;;
esac
echo "$program"
