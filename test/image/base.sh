#!/bin/sh
# Makes the three base images of the Dockerfile where no image registry can be reached, from Debian's packages and the
# Node.js, npm and Rust of this machine: postern-base and postern-rust (they compile) and postern-runtime (only runs: no
# shell, nothing but the C and C++ libraries, like a distroless image). Needs root, debootstrap, cargo and a Docker engine.
#   sh test/image/base.sh
#   BASE=postern-base RUST_BASE=postern-rust RUNTIME_BASE=postern-runtime sh test/image/run.sh
set -eu
cd "$(dirname "$0")/../.."
sh scripts/install.sh
node=$PWD/node_modules/node/bin/node
npm=$(npm root --global)/npm
rust=$(rustc --print sysroot)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

debian=${DEBIAN_TREE:-$work/debian}
[ -e "$debian/etc/debian_version" ] || debootstrap --variant=minbase bookworm "$debian"

runtime=$work/runtime
mkdir -p "$runtime/tmp" "$runtime/etc/ssl/certs"
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

# The two that compile are layers on one Debian.
[ "$debian" = "$work/debian" ] || cp -a "$debian" "$work/debian"
base=$work/debian
mkdir -p "$base/etc/ssl/certs"
# Whoever this machine trusts, a company's proxy for example, the build trusts too.
cp -L /etc/ssl/certs/ca-certificates.crt "$base/etc/ssl/certs/"
tar -C "$base" -c . | docker import - postern-debian

mkdir "$work/node" "$work/rust"
cp "$node" "$work/node/node"
cp -R "$npm" "$work/node/npm"
cat >"$work/node/Dockerfile" <<'END'
FROM postern-debian
COPY node /usr/local/bin/node
COPY npm /usr/local/lib/node_modules/npm
RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
END
docker build --quiet --tag postern-base "$work/node"

mkdir "$work/rust/lib"
cp -R "$rust/bin" "$work/rust/bin"
# Without documentation and sources.
cp -R "$rust"/lib/lib*.so* "$rust/lib/rustlib" "$work/rust/lib/"
cat >"$work/rust/Dockerfile" <<'END'
FROM postern-debian
COPY bin /usr/local/bin
COPY lib /usr/local/lib
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
END
docker build --quiet --network host --tag postern-rust "$work/rust"
