#!/usr/bin/env bash
# Makes the clean Debian hosts that `npm run test:packages` and `npm run test:puppetserver` start with systemd as process 1:
# folders that only have the distribution's own packages in them, and are never written to afterwards.
#
#   setup/hosts.sh NAME      makes it, if it is missing; prints its folder
#
#   bookworm, trixie    Debian 12 (Puppet 7) and 13 (Puppet 8) with HAProxy
#   ...-puppet          and the Puppet agent, the modules that sasori's module uses, and the tools for making modules
#   ...-puppetserver    and puppetserver, the Puppet agent, PuppetDB and PostgreSQL
#
# It needs root on Debian, systemd-nspawn and mmdebstrap (apt install systemd-container mmdebstrap). PARTS_DIR moves the
# folder, as for setup/parts.sh.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

# Raise the number when hosts are made differently. The old ones are then made again.
recipe=1
hosts=${PARTS_DIR:-/var/cache/sasori}/hosts-$recipe
base=systemd,systemd-sysv,dbus,haproxy,ca-certificates,procps,curl,iproute2
puppet=puppet-agent,puppet-module-puppetlabs-stdlib,puppet-module-puppetlabs-concat,puppet-lint,puppet-strings,ruby-rspec-puppet
puppetserver=puppetserver,puppet-agent,puppetdb,puppet-terminus-puppetdb,postgresql,openssl

say() { printf '%s\n' "$*" >&2; }
die() { say "setup/hosts.sh: $*"; exit 1; }

[ "$(id -u)" = 0 ] || die "only root can start a host"
for program in mmdebstrap systemd-nspawn; do
  command -v $program >/dev/null || die "$program is missing: apt install mmdebstrap systemd-container"
done

# A host without the stamp was interrupted, and is made again.
make() {
  local name=$1 suite=$2 packages=$3 folder=$hosts/$1 started=$SECONDS
  if [ ! -e "$folder.ready" ]; then
    say "$name: installing Debian $suite ..."
    rm -rf "$folder"
    mkdir -p "$hosts"
    mmdebstrap --quiet --variant=minbase --include="$packages" "$suite" "$folder" "deb $archive $suite main" >&2 ||
      die "$name could not be made, see above"
    # The test that starts the host gives these their configuration.
    systemctl --quiet --root="$folder" disable puppetserver puppetdb puppet 2>/dev/null || true
    # Services that a container does not need; nothing here waits for a network.
    rm -f "$folder/etc/machine-id" "$folder/etc/resolv.conf"
    : >"$folder/etc/machine-id"
    touch "$folder.ready"
    say "$name: ready in $((SECONDS - started)) s"
  fi
  printf '%s\n' "$folder"
}

mkdir -p "$hosts"
exec 9>"$hosts/.lock"
flock 9
archive=$(setup/parts.sh archive)
case ${1:-} in
  bookworm | trixie) make "$1" "$1" $base ;;
  bookworm-puppet | trixie-puppet) make "$1" "${1%-*}" $base,$puppet ;;
  bookworm-puppetserver | trixie-puppetserver) make "$1" "${1%-*}" $base,$puppetserver ;;
  *) die "which host? bookworm or trixie, bookworm-puppet or trixie-puppet, bookworm-puppetserver or trixie-puppetserver" ;;
esac
