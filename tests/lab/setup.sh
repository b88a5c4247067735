#!/bin/sh
# Puts on this machine what building Hospes and booting its lab need. Does nothing where all is there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"
workspace=$(cd "$here/../.." && pwd)

# What each is for stands beside it; all are Debian 12's own.
packages="
    ca-certificates
    gcc libc6-dev
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    qemu-system-arm qemu-system-common
    qemu-user-static binfmt-support arch-test
    mmdebstrap debian-archive-keyring
    e2fsprogs cpio xz-utils
    xfsprogs
    openssh-client rsync
    strace
    dpkg-dev fakeroot
    fuse3
"
# ca-certificates             cargo fetches crates
# gcc…                        links for this machine, and for the guest
# qemu-system-arm             boots the guest; qemu-user-static runs its programs here
# qemu-system-common          has virtiofsd, beside which shared folders are tried and measured
# strace                      counts system calls for `make bench`
# mmdebstrap, e2fsprogs, cpio make its disk and its initramfs
# xfsprogs                    makes a second disk for guests, and says whether a snapshot of it is whole
# openssh-client, rsync       the lab's key, the peer that `make bench` measures against, what the demo carries
# dpkg-dev, fakeroot          build the packages
# fuse3                       shows copied files of guests: hospes recommends it

missing_packages() {
    for name in $packages; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || echo "$name"
    done
}

install_packages() {
    say "Installing $*"
    log=$(mktemp)
    # Whoever else installs packages now is waited for.
    if ! { as_root apt-get update &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "Could not install $*: apt's own words are above."
    fi
    rm -f "$log"
}

at_least() {
    printf '%s\n%s\n' "$1" "$2" | sort -V -C
}

rust_will_do() {
    command -v cargo >/dev/null 2>&1 && command -v rustc >/dev/null 2>&1 || return 1
    version=$(rustc --version 2>/dev/null | cut -d ' ' -f 2)
    at_least "$rust_version" "${version:-0}"
}

set_up_rust() {
    rust_version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$workspace/Cargo.toml")
    rust_will_do && return
    if command -v rustup >/dev/null 2>&1; then
        say "Installing a Rust toolchain (rustup): Hospes needs $rust_version or newer"
        rustup toolchain install stable --profile minimal --component clippy,rustfmt && rustup default stable || true
        rust_will_do && return
    fi
    say "Installing Debian's newer Rust toolchain: Hospes needs $rust_version or newer"
    # It takes the place of Debian's older rustc and cargo, where those are installed.
    install_packages rustc-web cargo-web
    hash -r
    rust_will_do || fail "The Rust toolchain is $(rustc --version 2>/dev/null || echo missing), and $rust_version is" \
        "needed. Install a newer one, or put it first on PATH."
}

set_up_guest_std() {
    has_guest_std "$(rustc --print sysroot)" && return
    has_guest_std "$(cross_sysroot)" && return
    if command -v rustup >/dev/null 2>&1; then
        say "Adding $guest_target to the Rust toolchain"
        rustup target add "$guest_target" && return
    fi
    version=$(dpkg-query -W -f '${Version}' rustc-web 2>/dev/null) ||
        fail "This Rust toolchain has no standard library for $guest_target, and does not come from rustup or" \
            "Debian's rustc-web. Add that target's library to it."
    say "Unpacking the guest's Rust standard library"
    sysroot=$(cross_sysroot)
    unpack=$sysroot.$$
    mkdir -p "$unpack/lists/partial" "$unpack/archives/partial" "$unpack/tree" "$unpack/lib/rustlib"
    # apt's view of arm64 is a private one: the machine's own list of architectures stays as it is.
    (
        cd "$unpack"
        set -- -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
            -o "Dir::State::lists=$unpack/lists" -o "Dir::Cache=$unpack" -o Dir::State::status=/dev/null
        apt-get "$@" update >log 2>&1 &&
            apt-get "$@" download "libstd-rust-web-dev=$version" >>log 2>&1 || { tail -n 20 log >&2; exit 1; }
        dpkg-deb -x libstd-rust-web-dev_*.deb tree
    ) || fail "Could not fetch libstd-rust-web-dev $version for arm64: apt's own words are above."
    mv "$(find "$unpack/tree" -type d -path "*/rustlib/$guest_target")" "$unpack/lib/rustlib/"
    rm -rf "$unpack/lists" "$unpack/archives" "$unpack/tree" "$unpack"/*.deb "$unpack"/*.bin "$unpack/log"
    rm -rf "$sysroot"
    mv "$unpack" "$sysroot"
}

set_up_binfmt() {
    registry=/proc/sys/fs/binfmt_misc
    if [ ! -e $registry/register ]; then
        say "Mounting binfmt_misc, through which this machine runs the guest's programs"
        as_root mount -t binfmt_misc binfmt_misc $registry ||
            fail "Could not mount binfmt_misc. A container needs --privileged for it, or its host has to mount it."
    fi
    [ -e $registry/qemu-aarch64 ] || as_root update-binfmts --enable qemu-aarch64
    [ -e $registry/qemu-aarch64 ] || fail "qemu-aarch64 is not registered with binfmt_misc: update-binfmts would not."
}

missing=$(missing_packages)
# shellcheck disable=SC2086 # a list of names
[ -z "$missing" ] || install_packages $missing
set_up_rust
set_up_guest_std
set_up_binfmt
# apt names its mirror only where it has that mirror's lists, and the guest's packages come from the same one.
if [ -z "$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages')" ]; then
    say "Fetching apt's lists"
    as_root apt-get -qq update || fail "Could not fetch apt's lists: apt's own words are above."
fi
say "This machine has what Hospes needs: $(rustc --version | cut -d ' ' -f 1,2)," \
    "$(qemu-system-aarch64 --version | sed -n 's/^QEMU emulator version \([^ ]*\).*/QEMU \1/p')"
