#!/usr/bin/env bash
# Writes the file and has HAProxy's own Lua read it (reload.lua): no command for each entry, no new process.
. "$(dirname "$0")/haproxy.sh"
write_map
echo "nodes reload" | socat -t 60 - "UNIX-CONNECT:$SOCKET"
