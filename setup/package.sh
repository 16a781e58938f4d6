#!/usr/bin/env bash
# `npm run package`: makes dist/packages/sasori_<version>_<arch>.deb and sasori-<version>-1.<arch>.rpm, each with a
# Node.js of its own. No root is needed, and nothing of the machine's own programs gets into them.
#
#   npm run package                  for this machine's processor
#   npm run package -- --arch arm64  for another: amd64, arm64
#   npm run package -- --deb         only the deb; --rpm: only the rpm; --bundle: only dist/bundle; --tree: only the
#                                    package's files, in dist/packages/tree-<arch>
#
# Beside them it puts sasori-<version>.cdx.json, an SBOM of the program, its libraries and Node.js.
#
#   PACKAGE_VERSION     another version than package.json's
#   PACKAGE_MAINTAINER  "NAME <MAIL>" of the person responsible for these packages; by default git's user
#   PACKAGE_FAST=1      little compression, for tests
#
# It needs dpkg-deb for the deb, and rpmbuild for the rpm (on Debian and Ubuntu: apt install rpm).
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }
die() { say "setup/package.sh: $*"; exit 1; }
usage="usage: npm run package -- [--arch amd64|arm64] [--bundle|--tree|--deb|--rpm]"

arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
wanted="deb rpm"
while [ $# -gt 0 ]; do
  case $1 in
    --arch) arch=${2:?"$usage"}; shift ;;
    --deb | --rpm | --bundle | --tree) wanted=${1#--} ;;
    *) say "$usage"; exit 2 ;;
  esac
  shift
done
case $arch in
  amd64) cpu=x64 rpm_arch=x86_64 ;;
  arm64) cpu=arm64 rpm_arch=aarch64 ;;
  *) die "no Node.js for \"$arch\": expected amd64 or arm64" ;;
esac
for form in $wanted; do
  case $form in
    deb) command -v dpkg-deb >/dev/null || die "the deb needs dpkg-deb; --rpm makes the rpm only" ;;
    rpm) command -v rpmbuild >/dev/null || die "the rpm needs rpmbuild (Debian, Ubuntu: apt install rpm); --deb makes the deb only" ;;
  esac
done

version=${PACKAGE_VERSION:-$(node -p 'require("./package.json").version')}
packaged=${version/-/\~} # A release candidate is older than its release.
# Two runs on one commit make the same files, except V8's bytecode, which is never the same twice.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
PACKAGE_MAINTAINER=${PACKAGE_MAINTAINER:-$(git config user.name || echo sasori) <$(git config user.email || echo "root@$(hostname)")>}
export PACKAGE_MAINTAINER
packages=$PWD/dist/packages runtime=$PWD/dist/runtime-$cpu
tree=$packages/tree-$arch lib=$packages/tree-$arch/usr/lib/sasori

# --- The program ----------------------------------------------------------------------------------------------

setup/build.sh >&2
say "bundling"
node setup/packaging/bundle.mjs >&2
[ "$wanted" != bundle ] || exit 0

# npm checks what it fetches by the lockfile's checksums.
if ! cmp -s setup/packaging/runtime/package-lock.json "$runtime/package-lock.json" || [ ! -x "$runtime/node_modules/node-linux-$cpu/bin/node" ]; then
  say "fetching Node.js for $arch (50 MB)"
  mkdir -p "$runtime"
  cp setup/packaging/runtime/package.json "$runtime/"
  cp setup/packaging/runtime/package-lock.json "$runtime/package-lock.json.new"
  mv "$runtime/package-lock.json.new" "$runtime/package-lock.json"
  npm ci --prefix "$runtime" --os=linux --cpu="$cpu" --no-audit --no-fund --ignore-scripts >&2 ||
    { rm -f "$runtime/package-lock.json"; exit 1; }
fi
node=$runtime/node_modules/node-linux-$cpu

# --- Its files, as they are installed -------------------------------------------------------------------------

put() { install -D -m "$1" "$2" "$tree/$3"; }
write() { mkdir -p "$(dirname "$tree/$2")" && cat >"$tree/$2" && chmod "$1" "$tree/$2"; }

say "laying out the files"
rm -rf "$tree"
install -d "$tree"
put 755 "$node/bin/node" usr/lib/sasori/node
for file in sasori.cjs program.cjs package.json page/index.html page/page.js page/page.css page/icon.svg; do
  put 644 "dist/bundle/$file" "usr/lib/sasori/$file"
done
sed -i "s/\"version\": \".*\"/\"version\": \"$version\"/" "$lib/package.json"

# V8's bytecode of what a command that asks the daemon needs. It is made by the same Node that will read it.
if "$lib/node" --version >/dev/null 2>&1; then
  SASORI_PACKAGING_CACHE=$lib/program.cache SASORI_LISTEN=127.0.0.1:1 "$lib/node" "$lib/sasori.cjs" status 2>/dev/null || true
  [ -s "$lib/program.cache" ] || die "no bytecode was made of dist/bundle/program.cjs"
  chmod 644 "$lib/program.cache"
else
  say "this machine runs no programs for $arch: without bytecode, commands there start 0.1 s later"
fi

put 755 setup/packaging/sasori.sh usr/bin/sasori
node dist/src/cli.js man | gzip -9n | write 644 usr/share/man/man1/sasori.1.gz
node dist/src/cli.js completion bash | write 644 usr/share/bash-completion/completions/sasori
node dist/src/cli.js completion fish | write 644 usr/share/fish/vendor_completions.d/sasori.fish
for file in haproxy.cfg agents.cfg heal.lua; do put 644 "haproxy/$file" "etc/haproxy/sasori/$file"; done
put 640 deploy/systemd/sasori.env etc/sasori/sasori.env
put 644 deploy/prometheus/sasori.rules.yml usr/share/sasori/prometheus/sasori.rules.yml
put 644 deploy/grafana/sasori.json usr/share/sasori/grafana/sasori.json
node -e '
  const [sbom, node] = process.argv.slice(1).map((file) => JSON.parse(require("fs").readFileSync(file)));
  const { version, license } = node, ref = `node@${version}`;
  sbom.components.push({
    "bom-ref": ref, type: "platform", name: "node", version, purl: `pkg:generic/node@${version}`,
    cpe: `cpe:2.3:a:nodejs:node.js:${version}:*:*:*:*:*:*:*`, licenses: [{ license: { id: license } }],
  });
  sbom.dependencies.push({ ref, dependsOn: [] });
  sbom.dependencies.find((one) => one.ref === sbom.metadata.component["bom-ref"]).dependsOn.push(ref);
  console.log(JSON.stringify(sbom, null, 2));
' dist/bundle/sbom.json "$node/package.json" | write 644 usr/share/sasori/sbom.json
cp "$tree/usr/share/sasori/sbom.json" "$packages/sasori-$version.cdx.json"

# Without the package the administrator installs these files by hand, so the package's copies differ.
sed "s|^ExecStart=sasori |ExecStart=/usr/bin/sasori |; s|^Description=.*|&\nDocumentation=man:sasori(1)|; s|^# sasori beside HAProxy on one host.*|# sasori beside HAProxy on one host.|" \
  deploy/systemd/sasori.service | write 644 usr/lib/systemd/system/sasori.service
sed '1d; s|=/etc/sasori/gateway.env|=-/etc/sasori/gateway.env|' deploy/systemd/haproxy-sasori.conf |
  write 644 usr/lib/systemd/system/haproxy.service.d/sasori.conf
# HAProxy is another package, which may be installed later or never. So what needs its user is in files that only the
# scripts read.
sed '1d; /^m /d; /HAProxy.s group/d' deploy/systemd/sysusers.conf | write 644 usr/lib/sysusers.d/sasori.conf
sed '1d; /haproxy/d; /HAProxy talks/d; /uses them/d' deploy/systemd/tmpfiles.conf | write 644 usr/lib/tmpfiles.d/sasori.conf
cat >>"$tree/usr/lib/tmpfiles.d/sasori.conf" <<'END'
# Settings name keys and may hold a password.
z /etc/sasori 0750 root sasori -
z /etc/sasori/sasori.env 0640 root sasori -
END
grep '/var/lib/haproxy' deploy/systemd/tmpfiles.conf | write 644 usr/share/sasori/haproxy-sockets.conf

[ "$wanted" != tree ] || exit 0

# --- deb ------------------------------------------------------------------------------------------------------

licences() {
  cat LICENSE
  printf '\nThe file node is Node.js %s, from https://nodejs.org, as it is built there:\n\n' "$(sed -n 's/.*"version": "\(.*\)",/\1/p' "$node/package.json")"
  cat "$node/LICENSE"
  printf '\nThe other files hold these libraries:\n\n'
  cat dist/bundle/LICENSES.txt
}

make_deb() {
  local root=$packages/deb-$arch doc=usr/share/doc/sasori file level
  rm -rf "$root"
  cp -a "$tree" "$root"
  tree=$root
  # The gateway is off until somebody wants it: HAProxy must not change by the installation of another package.
  sed 's|^EXTRAOPTS=|#&|; s|^# /etc/sasori/gateway.env.*|&\n# With EXTRAOPTS the gateway is a part of HAProxy, from its next restart on.|' \
    deploy/systemd/gateway.env | write 640 etc/sasori/gateway.env
  node dist/src/cli.js completion zsh | write 644 usr/share/zsh/vendor-completions/_sasori
  licences | write 644 $doc/copyright
  node setup/packaging/changelog.mjs deb "$version" | gzip -9n | write 644 $doc/changelog.gz
  put 644 setup/packaging/deb/lintian-overrides usr/share/lintian/overrides/sasori
  install -d "$root/DEBIAN"
  install -m 755 -t "$root/DEBIAN" setup/packaging/deb/{postinst,prerm,postrm}
  install -m 644 setup/packaging/deb/triggers "$root/DEBIAN/"
  (cd "$root" && find etc -type f -printf '/%p\n' | sort) >"$root/DEBIAN/conffiles"
  (cd "$root" && find etc usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
  file=$(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f 1)
  sed "s/@VERSION@/$packaged/; s/@ARCH@/$arch/; s/@SIZE@/$file/; s/@MAINTAINER@/$PACKAGE_MAINTAINER/" setup/packaging/deb/control >"$root/DEBIAN/control"
  level=(-Zxz -z6)
  [ -z "${PACKAGE_FAST:-}" ] || level=(-Zgzip -z1)
  find "$root" -newermt "@$SOURCE_DATE_EPOCH" -print0 | xargs -0r touch -h -d "@$SOURCE_DATE_EPOCH"
  file=$packages/sasori_${packaged}_$arch.deb
  dpkg-deb --root-owner-group "${level[@]}" --build "$root" "$file" >/dev/null
  rm -rf "$root"
  say "$(du -h "$file" | cut -f 1)  ${file#"$PWD/"}"
}

# --- rpm ------------------------------------------------------------------------------------------------------

make_rpm() {
  local root=$packages/rpm-$arch payload=w15.zstdio file
  rm -rf "$root"
  install -d "$root"/{SPECS,root}
  cp -a "$tree/." "$root/root/"
  tree=$root/root
  # RHEL's and Fedora's unit calls it OPTIONS.
  sed 's|^EXTRAOPTS=.*|#OPTIONS="-f /etc/haproxy/sasori/haproxy.cfg"|; s|^# /etc/sasori/gateway.env.*|&\n# With OPTIONS the gateway is a part of HAProxy, from its next restart on.|' \
    deploy/systemd/gateway.env | write 640 etc/sasori/gateway.env
  node dist/src/cli.js completion zsh | write 644 usr/share/zsh/site-functions/_sasori
  licences | write 644 usr/share/licenses/sasori/LICENSE
  [ -z "${PACKAGE_FAST:-}" ] || payload=w1.zstdio
  sed "s/@VERSION@/$packaged/; s/@PAYLOAD@/$payload/; s/@MAINTAINER@/$PACKAGE_MAINTAINER/" setup/packaging/rpm/sasori.spec >"$root/SPECS/sasori.spec"
  node setup/packaging/changelog.mjs rpm "$version" >>"$root/SPECS/sasori.spec"
  rpmbuild -bb --quiet --target "$rpm_arch" --define "_topdir $root" --define "sasori_tree $root/root" \
    --define "_rpmdir $packages" --define "_build_name_fmt %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
    --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" \
    "$root/SPECS/sasori.spec" >"$packages/rpmbuild.log" 2>&1 || { cat "$packages/rpmbuild.log" >&2; exit 1; }
  rm -rf "$root"
  file=$packages/sasori-$packaged-1.$rpm_arch.rpm
  say "$(du -h "$file" | cut -f 1)  ${file#"$PWD/"}"
}

for form in $wanted; do
  say "packing the $form"
  (make_"$form")
done
rm -rf "$tree"
