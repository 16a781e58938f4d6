#!/usr/bin/env bash
# Prints "node master" for each node, by the facts that PuppetDB has of it. One question; fails when PuppetDB does.
set -euo pipefail
curl -fsS --max-time 60 --get "$PUPPETDB_URL/pdb/query/v4/factsets" \
  --data-urlencode 'query=["extract",["certname","producer"]]' |
  jq -r '.[] | "\(.certname) \(.producer)"'
