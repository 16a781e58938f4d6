#!/usr/bin/env bash
# Makes everything of one release in dist/release, under one version: the npm archive, deb and rpm for amd64 and arm64, the
# Puppet module, the container image where there is Docker, an SBOM, the release notes, checksums.
#
#   setup/release.sh            stops if something is missing, and names all of it at once
#   setup/release.sh --dry-run  goes on if something is missing, for this machine's processor only
#   setup/release.sh --check    finds out what is missing: what `npm publish` runs before it publishes
#
# How to release:
#   1. setup/pin-images.mjs, and commit that alone: a release names its images by their digests
#   2. write "## <version>" into CHANGELOG.md and commit it with `npm version <version>`, which also sets the tag
#   3. setup/release.sh, on Debian or Ubuntu with rpmbuild, with PACKAGE_MAINTAINER="NAME <MAIL>"
#   4. push branch and tag, and publish from CI (`npm publish`): package.json asks for provenance, which npm only
#      attests to a CI that it knows, for the repository that package.json names
#   5. `git revert` the commit of step 1: between releases the tags decide, so that a build has their fixes
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
value() { node -p "JSON.parse(require('fs').readFileSync('package.json', 'utf8'))$1 ?? ''"; }
version=$(value .version)

check() {
  local problems=() status unpinned
  [ -n "$(value .repository?.url)" ] ||
    problems+=("package.json names no repository: npm pkg set repository.type=git repository.url=git+https://...")
  grep -q "^## $version\( \|$\)" CHANGELOG.md ||
    problems+=("CHANGELOG.md has no heading \"## $version\": say there what changed for the operator")
  unpinned=$(setup/pin-images.mjs --list | awk '!/@/ { n++ } END { print n + 0 }')
  [ "$unpinned" = 0 ] || problems+=("images without a digest: $unpinned (setup/pin-images.mjs writes them)")
  if ! status=$(git status --porcelain 2>&1) || [ -n "$status" ]; then
    problems+=("this is not a clean clone: commit your changes, or publish from a fresh clone")
  elif [ "$(git tag --points-at HEAD --list "v$version")" = "" ]; then
    problems+=("the commit has no tag v$version: npm version $version sets it")
  fi
  [ ${#problems[@]} = 0 ] || { printf 'not published: %s\n' "${problems[@]}" >&2; exit 1; }
  npm run check
}

release=dist/release archs="amd64 arm64"
case ${1:-} in
  --check) check; exit 0 ;;
  --dry-run) archs=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/') ;;
  "") check ;;
  *) say "usage: setup/release.sh [--check|--dry-run]"; exit 2 ;;
esac

# What an earlier run left there is no part of this release.
rm -rf "$release" dist/packages/*.{deb,rpm,cdx.json}
for arch in $archs; do setup/package.sh --arch "$arch"; done

mkdir -p "$release"
mv dist/packages/*.{deb,rpm,cdx.json} "$release/"
say "the npm archive"
# Without prepack, which would compile again what is in dist already.
npm pack --ignore-scripts --silent --pack-destination "$release" >&2

say "the Puppet module"
module=sasori-sasori-$version
mkdir "$release/$module"
cp LICENSE "$release/$module/"
git ls-files -z deploy/puppet | tar -c --exclude=deploy/puppet/spec --exclude=deploy/puppet/.rspec --null -T - |
  tar -x -C "$release/$module" --strip-components=2
sed -i "s/^  \"version\": \".*\"/  \"version\": \"$version\"/" "$release/$module/metadata.json"
tar -c --owner=0 --group=0 --sort=name --mtime="@$(git log -1 --format=%ct)" -C "$release" "$module" | gzip -9n >"$release/$module.tar.gz"
rm -r "${release:?}/$module"

say "the notes"
PACKAGE_MAINTAINER="" node setup/packaging/changelog.mjs notes "$version" >"$release/NOTES.md"

if docker info >/dev/null 2>&1; then
  say "the image sasori:$version"
  docker build --quiet --tag "sasori:$version" . >&2
  docker save "sasori:$version" | gzip -1n >"$release/sasori-$version-image-$(docker version --format '{{.Server.Arch}}').tar.gz"
else
  say "NOT MADE: the image, because there is no Docker here (docker info)"
fi
(cd "$release" && sha256sum -- * >SHA256SUMS)
ls -l "$release" >&2
