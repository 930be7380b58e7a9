#!/bin/sh
# Compiles src to dist: the same modules without types, because Node strips no types below node_modules.
set -eu
cd "$(dirname "$0")/.."
rm -rf dist
exec sh scripts/with-node.sh node_modules/typescript/bin/tsc -p tsconfig.build.json
