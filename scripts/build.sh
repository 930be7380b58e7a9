#!/bin/sh
# Bundles src into dist: without types, because Node strips none below node_modules, and without what is not used.
set -eu
cd "$(dirname "$0")/.."
exec sh scripts/with-node.sh scripts/build.ts
