#!/bin/sh
# `npm run bench`: fetches what is missing (HAProxy 2.6, 3.0 and 3.2, wrk: see parts.sh) and runs the benchmarks.
# Arguments are their names: npm run bench -- gateway threads
set -eu
cd "$(dirname "$0")/.."
setup/build.sh >&2
setup/parts.sh test >/dev/null
setup/parts.sh wrk >/dev/null
exec node dist/bench/bench.js "$@"
