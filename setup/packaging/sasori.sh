#!/bin/sh
# sasori of the deb and the rpm: with the Node.js that came with it, and with the settings of the service.
# Whoever sets a SASORI_ variable has settings of their own. Root becomes the daemon's user: files that sasori writes
# stay that user's, and the doctor sees what the daemon sees. Only setup writes what belongs to root.
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
