# Hospes: every target does its own set-up on a fresh Debian 12 machine, as root or with sudo, and says what it does.

.NOTPARALLEL:
.PHONY: help setup lab lab-display desktops build guest floor machine package tools-package test-package packages test test-crates test-guest test-desktop test-display demo demo-desktop bench check fuzz torture test-vsock test-time test-share test-freeze suites guest-shell clean-lab

# One clock for the whole run: every line of progress tells the time since it began.
ifndef HOSPES_STARTED
export HOSPES_STARTED := $(shell date +%s)
endif

target := $(or $(CARGO_TARGET_DIR),target)
env := set -eu; . tests/lab/env.sh;

help:
	@echo 'make demo      boots a guest, installs hospes-tools in it with apt, and tells a story'
	@echo 'make demo-desktop  its chapter of a guest with a screen: copy, paste, a window that is dragged'
	@echo 'make test      every tier, up to a booted aarch64 guest'
	@echo 'make bench     what it costs, beside peers and floor, as a table and target/bench.json'
	@echo 'make check     format, clippy, docs, licences'
	@echo 'make fuzz      every decoder, coverage-guided'
	@echo 'make test-desktop  the clipboard on the desktops of Debian 13 and of sid, with 500 MiB in it (20 minutes)'
	@echo 'make test-display  screens on virtio-gpu in a booted guest follow a window, on every desktop (20 minutes; a guest of its own)'
	@echo 'make test-vsock  the kernel'\''s own test of vsock, between two guests'
	@echo 'make test-share  pjdfstest, fsx, git, sqlite, a build and stress-ng on a shared folder (three quarters of an hour)'
	@echo 'make test-time   the guest'\''s clock after 22 pauses for each time service (20 minutes)'
	@echo 'make test-freeze  200 freezes of a guest that writes, with random kills, each snapshot held against fsck (an hour)'
	@echo 'make torture   200 random kills under running commands and copies'
	@echo
	@echo 'make setup     packages, a Rust toolchain where none is there, and what builds for the guest'
	@echo 'make lab       the guest that the tests boot: Debian 13 for arm64 (4 minutes, once)'
	@echo 'make lab-display  the same with a screen and five desktops, 2 GB (10 minutes, once)'
	@echo 'make desktops  the desktops without a screen that tests run: Debian 13'\''s (2 minutes, once)'
	@echo 'make build     the programs for this machine, in $(target)/lab'
	@echo 'make guest     the programs for the guest, in $(target)/aarch64-unknown-linux-gnu/lab'
	@echo 'make package   hospes-tools, hospes-desktop and hospes for arm64, in $(target)/packages'
	@echo 'make packages  all, for arm64 and amd64, held against the policy of Debian'
	@echo 'make test-package  the same, built quickly: what the tests install'
	@echo 'make test-crates, make test-guest: the two halves of make test'
	@echo 'make guest-shell  a guest with hospes-tools in it, to try things in'
	@echo 'make clean-lab forgets the cached guests and desktops'

setup:
	@sh tests/lab/setup.sh

lab: setup
	@sh tests/lab/image.sh

# The same with a screen, and the desktops that people run there.
lab-display: lab
	@sh tests/lab/display.sh

desktops: setup
	@sh tests/lab/desktops.sh

# What other people's suites need in the guest, beside its root.
suites: setup
	@sh tests/lab/suites.sh

build: setup
	@$(env) say 'Building the programs for this machine'; \
	cargo build --quiet --locked --profile lab -p host-agent -p host-hv -p guest-tools -p guest-desktop --bins

guest: setup
	@$(env) say 'Building the programs for the guest'; \
	cargo build --quiet --locked --profile lab --target $$guest_target -p guest-tools --bins

# What the vsock device's tests and the benchmarks run in the guest: no part of the product.
floor: setup
	@$(env) say 'Building what measures the guest from inside'; \
	cargo build --quiet --locked --profile lab --target $$guest_target -p integration-tests --bin floor

# Our own machine, to be run on the KVM of an emulated one, and what talks to the guest in it.
machine: setup
	@$(env) say 'Building host-hv, hospes and a network cable for the guest'; \
	cargo build --quiet --locked --profile lab --target $$guest_target -p host-hv --bins; \
	cargo build --quiet --locked --profile lab --target $$guest_target -p host-agent --bins; \
	cargo build --quiet --locked --profile lab --target $$guest_target -p integration-tests --bin cable

package: setup
	@sh packaging/build-deb.sh hospes-tools arm64 --out $(target)/packages
	@sh packaging/build-deb.sh hospes-desktop arm64 --out $(target)/packages
	@sh packaging/build-deb.sh hospes arm64 --out $(target)/packages

# The guest's package alone, which is all that most of what boots a guest needs.
tools-package: setup
	@sh packaging/build-deb.sh hospes-tools arm64 --profile lab --out $(target)/lab/packages

# The same packages with programs that are built in a third of the time, for tests: what is shipped differs from them in
# its size and speed alone.
test-package: tools-package
	@sh packaging/build-deb.sh hospes-desktop arm64 --profile lab --out $(target)/lab/packages
	@sh packaging/build-deb.sh hospes arm64 --profile lab --out $(target)/lab/packages

packages: package
	@sh packaging/build-deb.sh hospes-tools amd64 --out $(target)/packages
	@sh packaging/build-deb.sh hospes-desktop amd64 --out $(target)/packages
	@sh packaging/build-deb.sh hospes amd64 --out $(target)/packages
	@sh packaging/lint.sh $(target)/packages

test-crates: setup
	@$(env) say 'Testing the crates on this machine'; \
	cargo test --quiet --locked --workspace --exclude integration-tests

test-guest: setup lab desktops build floor machine test-package
	@$(env) say 'Testing in a booted guest'; \
	cargo test --locked -p integration-tests

test: test-crates test-guest
	@$(env) say 'Every test passed'

demo: setup lab build tools-package
	@$(env) say 'Telling the story'; \
	cargo run --quiet --locked -p integration-tests --bin demo

demo-desktop: lab-display desktops build test-package
	@$(env) say 'Telling the story of a guest with a screen'; \
	cargo run --quiet --locked -p integration-tests --bin demo -- desktop

bench: setup lab suites desktops build floor package
	@$(env) VSOCK_PEER=$$(sh tests/lab/peers.sh vsock-device); export VSOCK_PEER; \
	sh tests/lab/peers.sh virtiofsd >/dev/null; \
	cargo build --quiet --locked --profile lab -p host-hv --example vsock_bench; \
	cargo build --quiet --locked --release -p host-hv --bin host-hv; \
	say 'Measuring'; \
	cargo run --quiet --locked --profile lab -p integration-tests --bin bench

test-desktop: setup build
	@$(env) for suite in trixie sid; do \
	    sh tests/lab/desktops.sh $$suite; export DESKTOPS_SUITE=$$suite; \
	    say "Copying and pasting on the desktops of Debian $$suite"; \
	    COPIES=1000 cargo test --locked -p integration-tests --test clipboard_matrix -- --include-ignored --test-threads 2; \
	done

test-display: lab-display desktops build test-package
	@$(env) say "Resizing a guest's screens"; \
	cargo run --quiet --locked -p integration-tests --bin display

test-vsock: setup lab build tools-package
	@$(env) program=$$(sh tests/lab/peers.sh vsock-test); \
	say "Running the kernel's test of vsock, guest to guest"; \
	cargo run --quiet --locked -p integration-tests --bin vsock_test -- "$$program"

test-share: setup lab suites build
	@$(env) sh tests/lab/peers.sh virtiofsd >/dev/null; \
	say 'Trying shared folders, beside both of Debian'\''s virtiofsd'; \
	cargo run --quiet --locked -p integration-tests --bin share_suites

test-time: setup lab build floor tools-package
	@$(env) say "Pausing a guest, for each time service"; \
	PAUSES=all cargo test --locked -p integration-tests --test time -- --nocapture

test-freeze: setup lab build tools-package
	@$(env) say 'Freezing a guest'; \
	FREEZES=$${FREEZES:-200} cargo test --locked -p integration-tests --test freeze -- what_hospes_calls_whole --nocapture

torture: setup lab build tools-package
	@$(env) say 'Killing at random'; \
	FAULTS=200 cargo test --locked -p integration-tests --test faults -- random_kills --nocapture

check: setup package
	@$(env) say 'Checking the format'; \
	cargo fmt --check || fail 'The format differs: run cargo fmt.'; \
	say 'Running clippy'; \
	cargo clippy --quiet --locked --workspace --all-targets -- -D warnings; \
	say 'Checking the documentation'; \
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --locked --workspace --no-deps --document-private-items; \
	sh tests/lab/deny.sh; \
	sh packaging/lint.sh $(target)/packages; \
	say 'Nothing to say'

fuzz: setup
	@sh protocol/fuzz/run.sh

guest-shell: setup lab build tools-package
	@$(env) say 'Starting a guest'; \
	cargo run --quiet --locked -p integration-tests --bin lab

clean-lab:
	@$(env) as_root rm -rf "$$HOSPES_CACHE/lab" "$$HOSPES_CACHE/display" "$$HOSPES_CACHE/desktops" "$$HOSPES_CACHE/suites"
