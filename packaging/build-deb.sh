#!/bin/sh
# Builds PACKAGE_VERSION_ARCH.deb from packaging/dist/PACKAGE, which mirrors the installed tree, and from the binaries.
#
#     packaging/build-deb.sh [hospes-tools|hospes-desktop|hospes] [arm64|amd64] [--profile PROFILE] [--out DIR]
#
# hospes-tools and hospes-desktop are the guest's, hospes the host's. hospes-tools, arm64 and the release profile unless
# said otherwise. The last line it prints is the package's path. It downloads nothing that cargo does not.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
workspace=$(cd "$here/.." && pwd)
. "$workspace/tests/lab/env.sh"

name=hospes-tools arch=arm64 profile=release out=$workspace/target/packages
while [ $# -gt 0 ]; do
    case $1 in
    hospes-tools | hospes-desktop | hospes) name=$1 ;;
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
# What runs the other kind of machine's programs is not needed for one's own.
[ "$(dpkg --print-architecture)" != "$arch" ] || run=
case $name in
hospes-tools) crate=guest-tools command=hospes-tools daemons="hospes-toolsd hospes-session hospes-mount hospes-freeze" ;;
hospes-desktop) crate=guest-desktop command=hospes-desktop daemons= ;;
hospes) crate=host-agent command=hospes daemons= ;;
esac
for tool in dpkg-deb fakeroot gzip cargo; do
    command -v "$tool" >/dev/null || fail "$tool is missing: run \`make setup\` first"
done

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$workspace/Cargo.toml")
release=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$here/deb/changelog")
[ "$version" = "$release" ] || fail "packaging/deb/changelog begins with $release, Cargo.toml says $version"

say "Building $name for $arch ($profile)"
(cd "$workspace" && cargo build --quiet --locked --package "$crate" --bins --target "$target" --profile "$profile")
built=${CARGO_TARGET_DIR:-$workspace/target}/$target/$([ "$profile" = dev ] && echo debug || echo "$profile")

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
root=$tree/root
mkdir "$root"
cp -a "$here/dist/$name/." "$root/"
for daemon in $daemons; do
    install -D -m 755 -t "$root/usr/libexec/hospes" "$built/$daemon"
done
install -D -m 755 -t "$root/usr/bin" "$built/$command"

# Manual pages and completions come from the command's own definition; the helper has none, and a page as it stands.
if [ "$name" != hospes-desktop ]; then
    install -d "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions" \
        "$root/usr/share/zsh/vendor-completions" "$root/usr/share/fish/vendor_completions.d"
    $run "$built/$command" man "$root/usr/share/man/man1"
    $run "$built/$command" completions bash >"$root/usr/share/bash-completion/completions/$command"
    $run "$built/$command" completions zsh >"$root/usr/share/zsh/vendor-completions/_$command"
    $run "$built/$command" completions fish >"$root/usr/share/fish/vendor_completions.d/$command.fish"
fi
doc=$root/usr/share/doc/$name
install -D -m 644 "$here/deb/copyright" "$doc/copyright"
# One source, one history: each package has it under its own name.
sed "s/^hospes-tools (/$name (/" "$here/deb/changelog" | gzip -9n >"$doc/changelog.gz"
find "$root/usr/share/man" -type f ! -name '*.gz' -exec gzip -9n {} +

# The same commit gives the same bytes.
date=$(dpkg-parsechangelog -l "$here/deb/changelog" -S Timestamp)
find "$root" -type d -exec chmod 755 {} +
find "$root" -type f ! -path "$root/usr/bin/*" ! -path "$root/usr/libexec/*" -exec chmod 644 {} +
find "$root" -depth -exec touch -h -d "@$date" {} +

install -d "$root/DEBIAN"
if [ -d "$root/etc" ]; then
    (cd "$root" && find etc -type f | sed 's|^|/|' | sort) >"$root/DEBIAN/conffiles"
fi
(cd "$root" && find usr -type f -exec md5sum {} + | sort -k 2) >"$root/DEBIAN/md5sums"
size=$(du -sk --apparent-size --exclude DEBIAN "$root" | cut -f 1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" "$here/deb/$name/control" \
    >"$root/DEBIAN/control"
for script in postinst prerm postrm; do
    install -m 755 "$here/deb/$name/$script" "$root/DEBIAN/$script"
done

mkdir -p "$out"
package=$out/${name}_${version}_$arch.deb
SOURCE_DATE_EPOCH=$date fakeroot dpkg-deb --root-owner-group -Zxz -b "$root" "$package.part" >/dev/null
mv "$package.part" "$package"
say "$name for $arch: $size KiB installed, $(($(stat -c %s "$package") / 1024)) KiB to download"
echo "$package"
