#!/usr/bin/env bash
# Runs before `npm publish` and stops it while something is missing; names all of it at once. How to release:
#   1. write "## <version>" into CHANGELOG.md and commit it with `npm version <version>`, which also sets the tag
#   2. push branch and tag, and publish from CI (`npm publish`): package.json asks for provenance, which npm only
#      attests to a CI that it knows, for the repository that package.json names
set -euo pipefail
cd "$(dirname "$0")/.."

problems=()
value() { node -p "JSON.parse(require('fs').readFileSync('package.json', 'utf8'))$1 ?? ''"; }
version=$(value .version)

[ -n "$(value .repository?.url)" ] ||
  problems+=("package.json names no repository: npm pkg set repository.type=git repository.url=git+https://...")
grep -q "^## $version\( \|$\)" CHANGELOG.md ||
  problems+=("CHANGELOG.md has no heading \"## $version\": say there what changed for the operator")
if ! status=$(git status --porcelain 2>&1) || [ -n "$status" ]; then
  problems+=("the work tree is no clean clone: commit, or publish from a fresh clone")
elif [ "$(git tag --points-at HEAD --list "v$version")" = "" ]; then
  problems+=("the commit has no tag v$version: npm version $version sets it")
fi

[ ${#problems[@]} = 0 ] || { printf 'not published: %s\n' "${problems[@]}" >&2; exit 1; }
npm run check
