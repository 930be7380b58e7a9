#!/bin/sh
# Builds the image and puts it to work: read-only root file system, no rights, a user that is nobody, a real Vault
# (OpenBao) and a real PostgreSQL, and psql through it. Says so and does nothing where no Docker engine answers.
#   sh test/image/run.sh
#   BASE=... RUST_BASE=... RUNTIME_BASE=... sh test/image/run.sh      other base images, see Dockerfile
set -eu
cd "$(dirname "$0")/../.."
if ! docker version >/dev/null 2>&1; then
  echo 'skipped: no Docker engine answers' >&2
  exit 0
fi
image=${IMAGE:-postern:test}
set -- --network host --tag "$image"
[ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
[ -z "${RUNTIME_BASE:-}" ] || set -- "$@" --build-arg "RUNTIME_BASE=$RUNTIME_BASE"
[ -z "${RUST_BASE:-}" ] || set -- "$@" --build-arg "RUST_BASE=$RUST_BASE"
[ -z "${REVISION:-}" ] || set -- "$@" --build-arg "REVISION=$REVISION"
set -- "$@" --build-arg "VERSION=$(sed -n 's/^  "version": "\(.*\)",$/\1/p' package.json)"
[ -z "${NPM_CONFIG_REGISTRY:-}" ] || set -- "$@" --build-arg "NPM_CONFIG_REGISTRY=$NPM_CONFIG_REGISTRY"
docker build "$@" .
IMAGE=$image exec sh scripts/with-node.sh test/run.ts test/image/image.ts
