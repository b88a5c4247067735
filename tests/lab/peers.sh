#!/bin/sh
# Fetches what Hospes is measured beside and does not ship, or tested with: `peers.sh NAME` makes sure that it is in the
# cache, and prints its path.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

peers=$HOSPES_CACHE/peers
device_version=0.3.0
fsx_version=0.3.2
pjdfstest_version=0.2.2

mkdir -p "$peers"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
    "$@" >"$log" 2>&1 </dev/null || {
        tail -n 20 "$log" >&2
        fail "$1 failed: its own words are above."
    }
}

# A program of crates.io, for the guest: its name is the crate's.
guest_crate() {
    program=$peers/$1-$2/bin/$1
    [ -x "$program" ] && return
    say "Building $1 $2 for the guest" >&2
    run env CARGO_TARGET_DIR="$peers/build" \
        cargo install --quiet --locked --target "$guest_target" --root "$peers/$1-$2" "$1@$2"
    rm -rf "$peers/build"
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
fsx)
    guest_crate fsx "$fsx_version"
    ;;
pjdfstest)
    guest_crate pjdfstest "$pjdfstest_version"
    ;;
virtiofsd)
    # Debian 13's is newer than this machine's libraries: it brings its own.
    program=$peers/virtiofsd/virtiofsd
    if [ ! -x "$program" ]; then
        say "Fetching Debian 13's virtiofsd" >&2
        build=$peers/virtiofsd.$$
        trap 'rm -rf "$log" "$build"' EXIT
        fetch_debian "$build/packages" trixie "$(dpkg --print-architecture)" download \
            virtiofsd libc6 libgcc-s1 libcap-ng0 libseccomp2
        for package in "$build"/packages/*.deb; do dpkg-deb -x "$package" "$build/tree"; done
        rm -rf "$build/packages"
        cat >"$build/virtiofsd" <<'WRAPPER'
#!/bin/sh
tree=$(dirname "$0")/tree
exec "$tree"/usr/lib64/ld-linux-*.so.* --library-path "$(echo "$tree"/usr/lib/*-linux-gnu)" \
    "$tree/usr/libexec/virtiofsd" "$@"
WRAPPER
        chmod 755 "$build/virtiofsd"
        run "$build/virtiofsd" --version
        rm -rf "$peers/virtiofsd"
        mv "$build" "$peers/virtiofsd"
    fi
    ;;
*)
    fail "usage: peers.sh vsock-device | vsock-test | fsx | pjdfstest | virtiofsd"
    ;;
esac
echo "$program"
