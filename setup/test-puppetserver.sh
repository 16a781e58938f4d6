#!/usr/bin/env bash
# `npm run test:puppetserver`: real puppetservers and Puppet agents, on Debian 12 (7) and then 13 (8) with systemd as process 1, with
# what the documents say pasted into their configuration. It needs root on Debian, and 4 GB of memory. Arguments go to vitest: with
# -t "puppetservers 8" only those are tried.
set -euo pipefail
cd "$(dirname "$0")/.."
setup/build.sh
for host in bookworm trixie; do setup/hosts.sh $host-puppetserver >/dev/null; done
exec node_modules/.bin/vitest run --config test/puppetserver/vitest.config.ts "$@"
