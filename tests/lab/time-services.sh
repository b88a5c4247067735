#!/bin/sh
# Fetches the time services that the tests of the guest's clock install in it: chrony and systemd-timesyncd for Debian 13
# arm64, with what the lab's image lacks for them. Prints the folder they are in, one folder each.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/env.sh"

suite=trixie
image=$(sh "$here/image.sh" --path)
[ -e "$image/root.ext4" ] || fail "The lab's guest is not built: run \`make lab\`."
folder=$image/time-services
if [ -e "$folder/chrony" ] && [ -e "$folder/timesyncd" ]; then
    echo "$folder"
    exit
fi

say "Fetching chrony and systemd-timesyncd for the guest" >&2
. /etc/os-release
from=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v codename="${VERSION_CODENAME:-stable}" '
        ($1 == codename || $1 == "stable" || $1 == "oldstable") && $2 == "main" { print $3; exit }')
[ -n "$from" ] || fail "apt on this machine has no Debian source with the component main."
# apt's view of the guest: its architecture, its mirror, and what is installed in it.
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/lists/partial" "$apt/parts"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main" >"$apt/sources.list"
/sbin/debugfs -R 'cat /var/lib/dpkg/status' "$image/root.ext4" >"$apt/status" 2>/dev/null
guest_apt() {
    apt-get -q -y -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
        -o APT::Install-Recommends=false -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status" \
        -o "Dir::Etc::sourcelist=$apt/sources.list" -o "Dir::Etc::sourceparts=$apt/parts" \
        -o "Dir::Cache=$apt/cache" "$@" >"$apt/log" 2>&1 </dev/null ||
        { tail -n 20 "$apt/log" >&2; fail "Could not fetch the guest's time services: apt's own words are above."; }
}
guest_apt update
for service in chrony:chrony timesyncd:systemd-timesyncd; do
    rm -rf "$apt/cache"
    mkdir -p "$apt/cache/archives/partial"
    guest_apt install --download-only "${service#*:}"
    rm -rf "$folder/${service%:*}.part"
    mkdir -p "$folder/${service%:*}.part"
    mv "$apt"/cache/archives/*.deb "$folder/${service%:*}.part/"
    mv -T "$folder/${service%:*}.part" "$folder/${service%:*}"
done
echo "$folder"
