#!/bin/sh
# `npm run test:faults`: hurts the whole of it in every way that can be thought of, and counts what was lost. About
# three minutes; with --long also soak, fuzz, and thousands of random steps, about an hour. Other arguments go to vitest: -t "two sasoris"
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" = --long ]; then
  shift
  export FAULTS_LONG=yes
fi
# All of it, unless a part is named: then every error code that the README promises must have been seen.
export FAULTS_WHOLE=yes
for argument in "$@"; do
  case $argument in -t* | --testNamePattern* | test/*) FAULTS_WHOLE=no ;; esac
done
setup/build.sh
setup/parts.sh test > /dev/null
exec node_modules/.bin/vitest run --config test/faults/vitest.config.ts "$@"
