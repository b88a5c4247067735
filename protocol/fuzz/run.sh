#!/bin/sh
# Fuzzes each target for SECONDS (60 without): protocol/fuzz/run.sh [SECONDS [TARGET…]]
# Needs a nightly compiler and cargo-fuzz. What it finds is in protocol/fuzz/artifacts/TARGET/.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
[ $# -eq 0 ] || shift
command -v cargo-fuzz >/dev/null || {
    echo "run.sh: cargo-fuzz is missing: cargo install cargo-fuzz --locked" >&2
    exit 1
}
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
cargo run -q -p hospes-protocol --example seeds -- "$seeds"

failed=
fuzz() { # FOLDER TARGET [SEED FOLDER]
    mkdir -p "$1/corpus/$2"
    echo "run.sh: $1 $2, $seconds s"
    # The limits are those of a daemon that must stay small: no input may take half a gigabyte, or five seconds.
    (cd "$1" && cargo +nightly fuzz run --fuzz-dir . "$2" "corpus/$2" ${3:+"$3"} -- -max_total_time="$seconds" \
        -rss_limit_mb=512 -timeout=5 -max_len=8192 -print_final_stats=1) || failed="$failed $1:$2"
}

targets() { # FOLDER
    for file in "$1"/fuzz_targets/*.rs; do basename "$file" .rs; done
}

for target in ${*:-$(targets protocol/fuzz)}; do
    mkdir -p "$seeds/$target"
    fuzz protocol/fuzz "$target" "$seeds/$target"
done
if [ $# -eq 0 ]; then
    for folder in host-hv/fuzz guest-desktop/fuzz guest-tools/fuzz; do
        for target in $(targets "$folder"); do fuzz "$folder" "$target"; done
    done
fi
[ -z "$failed" ] || { echo "run.sh: found something in$failed" >&2; exit 1; }
