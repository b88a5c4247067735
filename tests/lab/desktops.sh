#!/bin/sh
# Builds the desktops that the tests run without a screen: a tree of this machine's own architecture with the compositors
# and X servers that people use, and programs that copy and paste there which nobody here wrote.
#
#   desktops.sh [SUITE]          build it, unless the cache has it, and tell where it is
#   desktops.sh --path [SUITE]   tell only where it is or would be
#
# SUITE is Debian's: trixie, where none is given, or sid. The cache is keyed by this script.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

only_path=
[ "${1:-}" != --path ] || { only_path=1 && shift; }
suite=${1:-trixie}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

packages="
    mutter kwin-wayland sway labwc
    libgl1-mesa-dri libegl1 libgles2 gsettings-desktop-schemas fonts-dejavu-core xkb-data
    xwayland xvfb xserver-xorg-core xserver-xorg-video-dummy openbox
    dbus-daemon libpam-systemd-
    wl-clipboard xclip wtype xdotool zenity kdialog qt6-wayland copyq libglib2.0-bin
    wlr-randr x11-xserver-utils libkscreen-bin
    spice-vdagent
"
# mutter…             compositors, and what lets them draw without a graphics card
# xwayland…           X in a compositor, without a screen, and with one that takes any mode; a window manager
# dbus-daemon         the session's bus; nobody logs in here
# wl-clipboard…       copy, paste and type: for Wayland and X, a program of GTK's, two of Qt's, gio for files
# wlr-randr…          list and set modes
# spice-vdagent       what the clipboard is measured beside

desktops=$HOSPES_CACHE/desktops
tree=$desktops/$suite-$(sha256sum "$here/desktops.sh" | cut -c 1-16)
if [ -n "$only_path" ]; then
    echo "$tree"
    exit
fi
if [ -d "$tree" ]; then
    touch "$tree"
    say "The desktops are in the cache: $tree"
    exit
fi

# The mirror is the one that this machine's own apt uses.
mirror() {
    . /etc/os-release
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="${VERSION_CODENAME:-stable}" '
            ($1 == codename || $1 == "stable" || $1 == "oldstable") && $2 == "main" { print $3; exit }'
}

mkdir -p "$desktops"
exec 9>"$desktops/lock"
if ! flock -n 9; then
    say "Waiting for another run that is building the desktops"
    flock -w 1800 9 || fail "Another run has been building the desktops for half an hour: see $desktops."
    if [ -d "$tree" ]; then
        say "The desktops are in the cache: $tree"
        exit
    fi
fi

from=$(mirror)
[ -n "$from" ] || fail "apt on this machine has no Debian source with the component main, and the desktops' packages" \
    "come from the same mirror. Add one to /etc/apt/sources.list.d."
# Half-made trees of runs that were cut off, and trees that nothing has used for two weeks.
as_root find "$desktops" -mindepth 1 -maxdepth 1 -type d \( -name 'build.*' -o -mtime +14 \) \
    -exec rm -rf --one-file-system {} +

build=$desktops/build.$$
mkdir -p "$build"
trap 'as_root rm -rf --one-file-system "$build"' EXIT
trap 'exit 130' HUP INT TERM

apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-)' >"$build/apt.conf" || true
cat >>"$build/apt.conf" <<'CONF'
Acquire::Languages "none";
APT::Install-Recommends "false";
CONF

say "Building the desktops: Debian $suite, Mutter, KWin, sway, labwc and X (some 2 minutes)"
include=$(echo $packages | tr ' ' ,)
if ! as_root env TMPDIR="$build" mmdebstrap --mode=root --variant=apt --format=directory \
    --keyring="$keyring" --aptopt="$build/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/icons/*/*x*' \
    --dpkgopt='path-exclude=/usr/share/wallpapers/*' --dpkgopt='path-exclude=/usr/share/backgrounds/*' \
    --include="$include" "$suite" "$build/tree" "$from" >"$build/log" 2>&1 </dev/null; then
    tail -n 30 "$build/log" >&2
    fail "Could not build the desktops: mmdebstrap's own words are above."
fi
as_root sh -s "$build/tree" <<'ROOT'
set -eu
tree=$1
rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb \
    "$tree"/etc/apt/apt.conf.d/99mmdebstrap "$tree"/etc/apt/sources.list "$tree"/etc/apt/sources.list.d/*
[ -s "$tree/etc/machine-id" ] || echo 686f73706573000000000000000000aa >"$tree/etc/machine-id"
ROOT
mv -T "$build/tree" "$tree"
say "The desktops are ready: $tree ($(as_root du -sh "$tree" | cut -f 1))"
