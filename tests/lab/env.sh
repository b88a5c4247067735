# What every script here and the Makefile agree on; to be sourced from a POSIX shell.

: "${HOSPES_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/hospes}"
export HOSPES_CACHE

# A toolchain that was installed for this user but is not on this shell's path.
if ! command -v cargo >/dev/null 2>&1 && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    export PATH
fi

guest_target=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc

# Where the compiler has no standard library for the guest, setup.sh puts one here and it is used from here.
cross_sysroot() {
    echo "$HOSPES_CACHE/cross/$(rustc --version | tr -c 'A-Za-z0-9.\n' '_')"
}
has_guest_std() {
    [ -d "$1/lib/rustlib/$guest_target/lib" ]
}
if command -v rustc >/dev/null 2>&1 && ! has_guest_std "$(rustc --print sysroot)" && has_guest_std "$(cross_sysroot)"
then
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--sysroot $(cross_sysroot)"
fi

# The clock of the run: set once by whoever starts it, so that every stage tells the time since then.
: "${HOSPES_STARTED:=$(date +%s)}"
export HOSPES_STARTED
say() {
    elapsed=$(($(date +%s) - HOSPES_STARTED))
    printf '[%02d:%02d] %s\n' $((elapsed / 60)) $((elapsed % 60)) "$*"
}
fail() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        fail "This step needs root: $*. Run it as root, or install sudo."
    fi
}

# The Debian mirror that this machine's own apt uses: what other releases' packages come from.
mirror() {
    . /etc/os-release
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v codename="${VERSION_CODENAME:-stable}" '
            ($1 == codename || $1 == "stable" || $1 == "oldstable") && $2 == "main" { print $3; exit }'
}
# Fetches packages, or the sources of one, of a Debian release into the folder $1, and leaves the machine's own apt as
# it is: `fetch_debian FOLDER RELEASE ARCHITECTURE download PACKAGE…` or `… source PACKAGE`.
fetch_debian() {
    folder=$1 release=$2 architecture=$3 verb=$4
    shift 4
    from=$(mirror)
    [ -n "$from" ] || fail "apt on this machine has no Debian source with the component main, and other releases'" \
        "packages come from the same mirror. Add one to /etc/apt/sources.list.d."
    state=$(mktemp -d)
    mkdir -p "$folder" "$state/lists/partial" "$state/archives/partial"
    for kind in deb deb-src; do
        echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $release main"
    done >"$state/sources.list"
    status=0
    (
        cd "$folder"
        view() {
            apt-get -q -o APT::Sandbox::User=root -o "APT::Architecture=$architecture" \
                -o "APT::Architectures=$architecture" -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state" \
                -o Dir::State::status=/dev/null -o "Dir::Etc::SourceList=$state/sources.list" \
                -o Dir::Etc::SourceParts=/dev/null -o Acquire::Languages=none "$@"
        }
        view update && case $verb in
            source) view source --download-only "$@" ;;
            *) view download "$@" ;;
        esac
    ) >"$state/log" 2>&1 </dev/null || status=$?
    [ "$status" = 0 ] || tail -n 20 "$state/log" >&2
    rm -rf "$state"
    [ "$status" = 0 ] || fail "Could not fetch $* of Debian $release: apt's own words are above."
}
