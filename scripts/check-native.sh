#!/bin/sh
# Lint, format and tests of the compiled half of the relay. `native/README.md` says how to run them under AddressSanitizer.
set -eu
cd "$(dirname "$0")/../native"
if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; fi
if cargo clippy --version >/dev/null 2>&1; then cargo clippy --quiet --locked --all-targets -- -D warnings; fi
cargo test --quiet --locked
