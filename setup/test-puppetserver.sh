#!/usr/bin/env bash
# `npm run test:puppetserver`: real puppetservers and Puppet agents, on a Debian 12 host with systemd as process 1, with what the
# documents say pasted into their configuration. It needs root on Debian, and 3 GB of memory. Arguments go to vitest.
set -euo pipefail
cd "$(dirname "$0")/.."
setup/build.sh
setup/hosts.sh bookworm-puppetserver >/dev/null
exec node_modules/.bin/vitest run --config test/puppetserver/vitest.config.ts "$@"
