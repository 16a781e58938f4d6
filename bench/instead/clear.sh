#!/usr/bin/env bash
# The usual script: empties the live map and fills it again.
. "$(dirname "$0")/haproxy.sh"
write_map
{ echo "clear map $MAP"; additions ""; } | commands
