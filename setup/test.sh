#!/bin/sh
# `npm test`: fetches what is missing (HAProxy 2.6, 3.0 and 3.2, PuppetDB, PostgreSQL: see parts.sh) and runs
# every test. Arguments go to vitest: npm test -- test/plan.test.ts
set -eu
cd "$(dirname "$0")/.."
setup/build.sh
setup/parts.sh test > /dev/null
exec node_modules/.bin/vitest run "$@"
