#!/bin/sh
# `npm run demo`: brings what the demo needs (packages, build, HAProxy) and runs it. A fresh clone on Debian or
# Ubuntu with Node is enough. Arguments go to the demo: npm run demo -- --help
set -eu
cd "$(dirname "$0")/.."
setup/build.sh >&2

# One line, "haproxy<TAB>path". A failure has said why, and must not be hidden by a pipe.
haproxy=$(setup/parts.sh haproxy)
HAPROXY_BIN=$(printf '%s\n' "$haproxy" | cut -f 2)
export HAPROXY_BIN
exec node dist/demo/demo.js "$@"
