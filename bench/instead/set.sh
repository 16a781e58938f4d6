#!/usr/bin/env bash
# Reads the live map and changes what differs.
. "$(dirname "$0")/haproxy.sh"
export LC_ALL=C
write_map
echo "show map $MAP" | socat -t 60 - "UNIX-CONNECT:$SOCKET" | awk 'NF { print $2, $3 }' | sort >"$MAP.live"
sort "$MAP" | join -a 1 -a 2 -e - -o 0,1.2,2.2 "$MAP.live" - |
  awk -v map="$MAP" '
    $2 == $3 { next }
    $3 == "-" { print "del map", map, $1; next }
    { print ($2 == "-" ? "add" : "set"), "map", map, $1, $3 }' | commands
