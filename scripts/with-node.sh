#!/bin/sh
# with-node.sh FILE [ARGUMENT]...: runs a file of this checkout on the pinned Node.js, whatever Node.js the machine has.
set -eu
root=$(CDPATH='' cd -- "$(dirname "$0")/.." && pwd -P)
sh "$root/scripts/install.sh"
# What it starts (npm, programs of node_modules/.bin) finds the same Node.js.
PATH=$root/node_modules/.bin:$PATH
export PATH
cd "$root"
exec node_modules/node/bin/node "$@"
