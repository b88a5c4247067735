#!/bin/sh
# Builds the driver with the patches for Debian 13's kernel, unless it is given, and loads it in a booted guest with a
# screen, where modetest reads its properties while QEMU's display changes:
#
#     kernel-patches/try.sh [virtio-gpu.ko]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
. tests/lab/env.sh

sh tests/lab/setup.sh
sh tests/lab/display.sh
sh tests/lab/desktops.sh
module=${1:-$(sh kernel-patches/build.sh trixie | tail -n 1)}
cargo build --quiet --locked --profile lab -p host-agent -p host-hv --bins
say "Loading $module in a guest"
cargo run --quiet --locked -p integration-tests --bin display -- kernel "$module"
