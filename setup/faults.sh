#!/bin/sh
# `npm run test:faults`: makes each fault that the documents name, with the real programs, and counts what was lost. It takes
# some minutes. --long adds a soak, fuzz, and thousands of random steps. Other arguments go to vitest: -t "two sasoris"
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" = --long ]; then
  shift
  export FAULTS_LONG=yes
fi
# A whole run must have seen every error code of docs/reference.md. A run of named tests need not.
export FAULTS_WHOLE=yes
for argument in "$@"; do
  case $argument in -t* | --testNamePattern* | test/*) FAULTS_WHOLE=no ;; esac
done
setup/build.sh
setup/parts.sh test > /dev/null
exec node_modules/.bin/vitest run --config test/faults/vitest.config.ts "$@"
