#!/usr/bin/env bash
# The same, but into a new version of the map, which is unseen until it is whole.
. "$(dirname "$0")/haproxy.sh"
write_map
version=@$(echo "prepare map $MAP" | socat -t 60 - "UNIX-CONNECT:$SOCKET" | sed -n 's/^New version created: //p')
{ additions "$version "; echo "commit map $version $MAP"; } | commands
