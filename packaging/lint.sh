#!/bin/sh
# Holds the packages that are built against Debian's policy, and against a size that nobody minds. lintian is installed on first use.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../tests/lab/env.sh"
packages=${1:-$here/../target/packages}
if ! command -v lintian >/dev/null; then
    say 'Installing lintian'
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends lintian >/dev/null ||
        fail "lintian could not be installed: apt's own words are above."
fi
set -- "$packages"/*.deb
[ -e "$1" ] || fail "No package in $packages: run \`make package\`"
say "Checking $# packages against Debian's policy"
# initial-upload-closes-no-bugs: there is no bug in Debian that asks for it.
lintian --allow-root --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs "$@"
for package in "$@"; do
    size=$(dpkg-deb --field "$package" Installed-Size)
    [ "$size" -le $((8 * 1024)) ] || fail "$package takes $size KiB where it is installed: 8192 are too many."
done
