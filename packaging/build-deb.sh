#!/bin/sh
# Builds hospes-tools_VERSION_ARCH.deb from packaging/dist, which mirrors the installed tree, and from the binaries.
#
#     packaging/build-deb.sh [arm64|amd64] [--profile PROFILE] [--out DIR]
#
# arm64 and the release profile unless said otherwise. The last line it prints is the package's path. It downloads
# nothing that cargo does not.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
workspace=$(cd "$here/.." && pwd)
. "$workspace/tests/lab/env.sh"

arch=arm64 profile=release out=$workspace/target/packages
while [ $# -gt 0 ]; do
    case $1 in
    arm64 | amd64) arch=$1 ;;
    --profile) profile=$2 && shift ;;
    --out) out=$2 && shift ;;
    *) fail "Unknown argument $1: see the head of $0" ;;
    esac
    shift
done
case $arch in
arm64) target=aarch64-unknown-linux-gnu run="qemu-aarch64-static -L /usr/aarch64-linux-gnu" ;;
amd64) target=x86_64-unknown-linux-gnu run= ;;
esac
for tool in dpkg-deb fakeroot gzip cargo; do
    command -v "$tool" >/dev/null || fail "$tool is missing: run \`make setup\` first"
done

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$workspace/Cargo.toml")
release=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$here/deb/changelog")
[ "$version" = "$release" ] || fail "packaging/deb/changelog begins with $release, Cargo.toml says $version"

say "Building hospes-tools for $arch ($profile)"
(cd "$workspace" && cargo build --quiet --locked --package guest-tools --bins --target "$target" --profile "$profile")
built=${CARGO_TARGET_DIR:-$workspace/target}/$target/$([ "$profile" = dev ] && echo debug || echo "$profile")

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
root=$tree/root
mkdir "$root"
cp -a "$here/dist/hospes-tools/." "$root/"
install -D -m 755 -t "$root/usr/libexec/hospes" "$built/hospes-toolsd" "$built/hospes-session"
install -D -m 755 -t "$root/usr/bin" "$built/hospes-tools"

# Manual pages and completions come from the command's own definition.
install -d "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions" \
    "$root/usr/share/zsh/vendor-completions" "$root/usr/share/fish/vendor_completions.d"
$run "$built/hospes-tools" man "$root/usr/share/man/man1"
$run "$built/hospes-tools" completions bash >"$root/usr/share/bash-completion/completions/hospes-tools"
$run "$built/hospes-tools" completions zsh >"$root/usr/share/zsh/vendor-completions/_hospes-tools"
$run "$built/hospes-tools" completions fish >"$root/usr/share/fish/vendor_completions.d/hospes-tools.fish"
doc=$root/usr/share/doc/hospes-tools
install -D -m 644 "$here/deb/copyright" "$doc/copyright"
gzip -9n <"$here/deb/changelog" >"$doc/changelog.gz"
find "$root/usr/share/man" -type f ! -name '*.gz' -exec gzip -9n {} +

# The same commit gives the same bytes.
date=$(dpkg-parsechangelog -l "$here/deb/changelog" -S Timestamp)
find "$root" -type d -exec chmod 755 {} +
find "$root/usr/share" "$root/usr/lib" "$root/etc" -type f -exec chmod 644 {} +
find "$root" -depth -exec touch -h -d "@$date" {} +

install -d "$root/DEBIAN"
(cd "$root" && find etc -type f | sed 's|^|/|' | sort) >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -exec md5sum {} + | sort -k 2) >"$root/DEBIAN/md5sums"
size=$(du -sk --apparent-size --exclude DEBIAN "$root" | cut -f 1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" "$here/deb/control" >"$root/DEBIAN/control"
for script in postinst prerm postrm; do
    install -m 755 "$here/deb/$script" "$root/DEBIAN/$script"
done

mkdir -p "$out"
package=$out/hospes-tools_${version}_$arch.deb
SOURCE_DATE_EPOCH=$date fakeroot dpkg-deb --root-owner-group -Zxz -b "$root" "$package.part" >/dev/null
mv "$package.part" "$package"
say "hospes-tools for $arch: $size KiB installed, $(($(stat -c %s "$package") / 1024)) KiB to download"
echo "$package"
