#!/bin/sh
# Makes a fresh clone ready to run: checks Node, installs the locked packages, compiles. Quick when all is done.
set -eu
cd "$(dirname "$0")/.."

node -e '
  const [major, minor, patch] = process.versions.node.split(".").map(Number);
  const ok = major > 20 || (major === 20 && (minor > 18 || (minor === 18 && patch >= 1)));
  if (!ok) { console.error(`sasori needs Node 20.18.1 or newer, this is ${process.version}`); process.exit(1); }
'

# npm writes this file last, so an interrupted installation is not taken for a whole one.
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  # Without the packages' own scripts: none is needed, and newer releases of npm warn about each.
  npm ci --ignore-scripts --no-audit --no-fund
fi

newest=$(find src demo bench test/support setup/page.config.ts tsconfig.json tsconfig.build.json -type f -newer dist/src/cli.js 2>/dev/null | head -n 1 || true)
if [ ! -e dist/src/cli.js ] || [ ! -e dist/page/index.html ] || [ -n "$newest" ]; then
  echo "compiling" >&2
  npm run --silent build
  touch dist/src/cli.js
fi
