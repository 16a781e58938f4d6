#!/bin/sh
# `npm run test:compose`: brings docker-compose.yml up on this machine's Docker, tries what the README promises, and
# leaves nothing behind. A stack that runs already is not disturbed. Arguments go to vitest.
set -eu
cd "$(dirname "$0")/.."

if ! version=$(docker info --format '{{.ServerVersion}}' 2>/dev/null) || [ -z "$version" ]; then
  echo "npm run test:compose needs Docker: \`docker info\` finds no engine here. Start it, or get the right to use it" >&2
  exit 1
fi
if ! docker compose -f docker-compose.yml -f docker-compose.light.yml -f docker-compose.second-haproxy.yml config --quiet; then
  echo "npm run test:compose needs Docker Compose 2.24.4 or newer: this is $(docker compose version --short 2>/dev/null || echo none)" >&2
  exit 1
fi
setup/build.sh >&2
exec node_modules/.bin/vitest run --config test/compose/vitest.config.ts "$@"
