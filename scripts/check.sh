#!/bin/sh
# Types, lint and format of the whole repository; with words behind it only these of the three.
set -eu
cd "$(dirname "$0")/.."
[ "$#" -gt 0 ] || set -- types lint format
for what in "$@"; do
  case $what in
    types) sh scripts/with-node.sh node_modules/typescript/bin/tsc ;;
    lint) sh scripts/with-node.sh node_modules/oxlint/bin/oxlint --type-aware ;;
    format) sh scripts/with-node.sh node_modules/@biomejs/biome/bin/biome check ;;
    *)
      echo "check.sh [types] [lint] [format]" >&2
      exit 2
      ;;
  esac
done
