#!/bin/sh
# Installs what package-lock.json names, the pinned Node.js among it, unless node_modules already holds just that.
set -eu
cd "$(dirname "$0")/.."

# npm writes down what it installed in a file of the same form as package-lock.json. What it left out on purpose are
# optional packages for other systems.
installed() {
  [ -x node_modules/node/bin/node ] && node -e '
    const read = (file) => JSON.parse(require("fs").readFileSync(file, "utf8")).packages;
    const wanted = read("package-lock.json");
    const found = read("node_modules/.package-lock.json");
    const same = Object.keys(wanted).every((path) => path === "" ||
      (found[path] ? found[path].integrity === wanted[path].integrity : wanted[path].optional || wanted[path].devOptional));
    const nothingElse = Object.keys(found).every((path) => path in wanted || path.startsWith("node_modules/node/"));
    process.exit(same && nothingElse ? 0 : 1);
  ' 2>/dev/null
}

# A link leads to the node_modules of another checkout, whose business they are.
if [ ! -L node_modules ] && ! installed; then
  echo 'installing dependencies' >&2
  # Only errors: npm would warn that the Node.js it runs on itself is too old for Postern, which never runs on that one.
  npm ci --no-audit --no-fund --loglevel=error >&2
fi
if [ ! -x node_modules/node/bin/node ]; then
  echo 'the pinned Node.js is missing: its install script did not run (npm config get ignore-scripts)' >&2
  exit 1
fi
