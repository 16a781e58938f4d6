#!/bin/sh
# `npm test`: fetches what is missing (HAProxy 2.6, 3.0 and 3.2, PuppetDB, PostgreSQL: see parts.sh) and runs
# every test. `npm run test:quick`: those that need no more than one HAProxy, and are quick. Arguments go to vitest:
# npm test -- test/plan.test.ts
set -eu
cd "$(dirname "$0")/.."
setup/build.sh
if [ "${1:-}" = --quick ]; then
  shift
  export TEST_QUICK=yes
  setup/parts.sh haproxy > /dev/null
else
  setup/parts.sh test > /dev/null
fi
exec node_modules/.bin/vitest run "$@"
