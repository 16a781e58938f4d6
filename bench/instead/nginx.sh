#!/usr/bin/env bash
# Writes the file that nginx's map includes, and has nginx read it: `-s reload` looks first whether it can be read.
set -euo pipefail
"$(dirname "$0")/nodes.sh" | sed 's/$/;/' >"$MAP.new"
[ -s "$MAP.new" ]
mv "$MAP.new" "$MAP"
nginx -e stderr -c "$NGINX_CONF" -s reload
