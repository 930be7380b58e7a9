#!/bin/sh
# Builds the native half of the relay to native/postern-native.<target>.node, where Postern finds it. Without cargo there is none,
# and Postern relays in TypeScript.
set -eu
root=$(CDPATH='' cd -- "$(dirname "$0")/.." && pwd -P)
if ! command -v cargo >/dev/null 2>&1; then
  echo 'native: cargo is not installed, so nothing is built; Postern relays in TypeScript'
  exit 0
fi
cd "$root/native"
triple=${1:-$(rustc -vV | sed -n 's/^host: //p')}
case $triple in
  x86_64-*) cpu=x64 ;;
  aarch64-*) cpu=arm64 ;;
  *) cpu= ;;
esac
case $triple in
  *-linux-gnu) system=linux libc=-gnu library=libpostern_native.so ;;
  *-linux-musl) system=linux libc=-musl library=libpostern_native.so ;;
  *-apple-darwin) system=darwin libc='' library=libpostern_native.dylib ;;
  *) system= ;;
esac
if [ -z "$cpu" ] || [ -z "$system" ]; then
  echo "native: nothing is built for $triple; Postern relays in TypeScript"
  exit 0
fi
# A musl library is linked statically by default, and such a one cannot be loaded by a program.
case $libc in -musl) RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=-crt-static" && export RUSTFLAGS ;; esac
cargo build --release --locked --quiet --target "$triple"
file=postern-native.$system-$cpu$libc.node
# Renamed into its place: a program that has the old one loaded keeps it.
cp "${CARGO_TARGET_DIR:-target}/$triple/release/$library" "$file.new"
mv "$file.new" "$file"
echo "native: native/$file"
