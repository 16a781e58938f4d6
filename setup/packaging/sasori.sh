#!/bin/sh
# The command `sasori` of the deb and the rpm. It uses the package's Node.js, and the settings of the service unless a SASORI_
# variable is set. Root becomes the daemon's user, so that files keep that owner and the doctor sees what the daemon sees.
# Only `setup` runs as root.
lib=/usr/lib/sasori
settings=/etc/sasori/sasori.env

if [ "${1-}" != setup ] && ! env | grep -q '^SASORI_'; then
  if [ -r "$settings" ]; then
    set -a
    # shellcheck source=/dev/null
    . "$settings"
    set +a
  fi
  if [ "$(id -u)" = 0 ] && id sasori >/dev/null 2>&1; then
    exec setpriv --reuid=sasori --regid=sasori --init-groups "$lib/node" "$lib/sasori.cjs" "$@"
  fi
fi
exec "$lib/node" "$lib/sasori.cjs" "$@"
