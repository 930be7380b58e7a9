#!/bin/sh
# Makes the two base images of the Dockerfile where no image registry can be reached, from Debian's packages and the
# Node.js and npm of this machine: postern-base (compiles) and postern-runtime (only runs: no shell, nothing but Node.js
# and the C library, like a distroless image). Needs root, debootstrap and a Docker engine.
#   sh test/image/base.sh
#   BASE=postern-base RUNTIME_BASE=postern-runtime sh test/image/run.sh
set -eu
cd "$(dirname "$0")/../.."
sh scripts/install.sh
node=$PWD/node_modules/node/bin/node
npm=$(npm root --global)/npm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

debian=${DEBIAN_TREE:-$work/debian}
[ -e "$debian/etc/debian_version" ] || debootstrap --variant=minbase bookworm "$debian"

runtime=$work/runtime
mkdir -p "$runtime/nodejs/bin" "$runtime/tmp" "$runtime/etc/ssl/certs"
cp "$node" "$runtime/nodejs/bin/node"
for library in $(chroot "$debian" /sbin/ldconfig -p | sed -n 's/.* => //p'); do
  case ${library##*/} in
    ld-linux*.so.* | libc.so.6 | libm.so.6 | libdl.so.2 | libpthread.so.0 | libstdc++.so.6 | libgcc_s.so.1 | libatomic.so.1 | libnss_dns.so.2 | libnss_files.so.2 | libresolv.so.2)
      mkdir -p "$runtime${library%/*}"
      cp -L "$debian$library" "$runtime$library"
      ;;
  esac
done
# The program interpreter is named by an absolute path inside the binary.
loader=$(find "$runtime" -name 'ld-linux*.so.*' | head -n 1)
case $(uname -m) in
  x86_64) mkdir -p "$runtime/lib64" && cp -n "$loader" "$runtime/lib64/" ;;
esac
tar -C "$runtime" -c . | docker import - postern-runtime

[ "$debian" = "$work/debian" ] || cp -a "$debian" "$work/debian"
base=$work/debian
cp "$node" "$base/usr/local/bin/node"
mkdir -p "$base/usr/local/lib/node_modules" "$base/etc/ssl/certs"
cp -R "$npm" "$base/usr/local/lib/node_modules/npm"
ln -sf ../lib/node_modules/npm/bin/npm-cli.js "$base/usr/local/bin/npm"
# Whoever this machine trusts, a company's proxy for example, the build trusts too.
cp -L /etc/ssl/certs/ca-certificates.crt "$base/etc/ssl/certs/"
tar -C "$base" -c . | docker import --change 'ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt' - postern-base
