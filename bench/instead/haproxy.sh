# What the scripts for HAProxy share; to be sourced. They are given PUPPETDB_URL, MAP (the map, by its file) and SOCKET.
set -euo pipefail
here=$(dirname "$0")

# All that PuppetDB knows, in the file first: an HAProxy that restarts reads it. Nothing is touched when PuppetDB fails.
write_map() {
  "$here/nodes.sh" >"$MAP.new"
  [ -s "$MAP.new" ]
  mv "$MAP.new" "$MAP"
}

# Sends the commands on stdin over one connection. What HAProxy answers are prompts, and why it refuses a command.
# shut-none, because HAProxy 2.6 now and then forgets the last commands when its peer has closed, without a word.
commands() {
  local said
  said=$({ echo prompt; cat; echo quit; } | socat -t 60 - "UNIX-CONNECT:$SOCKET,shut-none")
  if grep -v '^[+> ]*$' <<<"$said" >&2; then return 1; fi
}

# The map as commands that add it to version $1 ("@2 "; "" is the live one). 400 lines are what fits into HAProxy's
# buffer of 16 kB at once.
additions() {
  awk -v add="add map $1$MAP <<" 'NR % 400 == 1 { if (NR > 1) print ""; print add } { print } END { print "" }' "$MAP"
}
