#!/bin/sh
# `npm test`: fetches what is missing (HAProxy 2.6, 3.0, 3.2 and 3.4, PuppetDB, PostgreSQL: see parts.sh) and runs
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
  if [ -z "${TEST_HAPROXY_BINS:-${HAPROXY_BIN:-}}" ]; then
    setup/parts.sh next > /dev/null || echo "npm test goes on without HAProxy 3.4" >&2
  fi
fi
exec node_modules/.bin/vitest run "$@"
