#!/usr/bin/env bash
# Writes the file and has HAProxy read it: its master (at MASTER_SOCKET) starts a new worker and lets the old one finish.
. "$(dirname "$0")/haproxy.sh"
write_map
echo reload | socat -t 60 - "UNIX-CONNECT:$MASTER_SOCKET" >"$MAP.reload"
# HAProxy 2.6 says nothing.
if grep -q Success=0 "$MAP.reload"; then cat "$MAP.reload" >&2; exit 1; fi
