#!/bin/sh
# Licences, sources and duplicates of what we depend on. The tool is installed on first use: it takes minutes.
set -eu
. "$(dirname "$0")/env.sh"
cd "$(dirname "$0")/../.."
if ! cargo deny --version >/dev/null 2>&1; then
    say 'Installing cargo-deny (some minutes, once)'
    # Out of the tree's own target directory: its build is of no use to anything else.
    build=$(mktemp -d)
    trap 'rm -rf "$build"' EXIT
    if ! CARGO_TARGET_DIR=$build cargo install --quiet --locked cargo-deny; then
        say 'cargo-deny could not be installed: licences go unchecked'
        exit
    fi
fi
say 'Checking licences and sources'
# Advisories come from a database on the network: they are for a person to ask for.
cargo deny --locked check licenses bans sources
