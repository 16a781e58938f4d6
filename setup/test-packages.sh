#!/usr/bin/env bash
# `npm run test:packages`: makes the packages and installs them on clean Debian hosts with systemd as process 1. It needs
# root on Debian: nothing else can start such a host. Arguments go to vitest: npm run test:packages -- test/packages/lint.test.ts
set -euo pipefail
cd "$(dirname "$0")/.."

# What this machine lacks for it, one a line.
lacking() {
  [ "$(id -u)" = 0 ] || echo "root"
  for needed in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container rpmbuild:rpm lintian:lintian rpmlint:rpmlint nsenter:util-linux; do
    command -v "${needed%:*}" >/dev/null || echo "${needed#*:}"
  done
}
lacks=$(lacking | paste -sd ' ')
if [ -n "$lacks" ]; then
  echo "npm run test:packages needs root on Debian. Missing here: $lacks (packages: apt install ${lacks#root })" >&2
  exit 1
fi

for host in {bookworm,trixie}{,-puppet}; do setup/hosts.sh $host >/dev/null; done
export PACKAGE_FAST=1 PACKAGE_MAINTAINER="The sasori authors <sasori@example.org>"
version=$(node -p 'require("./package.json").version')
made=dist/packages-test
# The same program under an older version, until there is a release to upgrade from.
rm -rf $made
mkdir -p $made/previous $made/new
PACKAGE_VERSION=$version-previous setup/package.sh --deb
mv dist/packages/sasori_"$version"~previous_*.deb $made/previous/
setup/package.sh
mv dist/packages/sasori_"$version"_*.deb dist/packages/sasori-"$version"-1.*.rpm $made/new/
exec node_modules/.bin/vitest run --config test/packages/vitest.config.ts "$@"
