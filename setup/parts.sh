#!/usr/bin/env bash
# Gets the real programs that the demo, the tests and the benchmarks run: HAProxy, PuppetDB, PostgreSQL, Chromium,
# wrk, zsh and fish, a library that sets a program's clock; the tools that judge what deploy/ has: promtool,
# systemd-analyze, kubectl; curl, jq and socat, which the documents use; and nginx, against which sasori is measured.
#
#   setup/parts.sh haproxy   one HAProxy, for the demo     (the machine's own, if it has 2.6 or newer)
#   setup/parts.sh test      all that the tests run: every HAProxy, PuppetDB 7 and 8 with PostgreSQL and Java, Chromium,
#                            and the tools for deploy/
#   setup/parts.sh next      HAProxy 3.4, which only Debian experimental has. Some tests run on it where it is there; all do with
#                            TEST_HAPROXY_BINS=$(setup/parts.sh next) npm test
#   setup/parts.sh wrk       the load generator, for the benchmarks
#   setup/parts.sh instead   what the benchmark of that name runs: nginx, curl, jq, socat
#   setup/parts.sh registry  a registry of container images, for npm run test:compose
#   setup/parts.sh archive   fetches nothing: prints the address of the distribution's archive, for setup/hosts.sh
#   setup/parts.sh paths     fetches nothing: prints where everything is, for test/support/parts.ts
#
# They are the distribution's own packages, unpacked with their dependencies into a private folder. No root is
# needed, no service is started, and the machine's own packages are neither changed nor used: every part brings
# its libraries down to its own libc, so that programs of another Debian release run as well.
#
# Progress goes to stderr; stdout has lines "name<TAB>path". To use programs of your own instead:
#   HAPROXY_BIN          one HAProxy, for the demo and the tests
#   TEST_HAPROXY_BINS    several for the tests, separated by colons
#   KUBECTL_BIN          kubectl 1.27 or newer; Ubuntu's archive has none, and the tests that need it are skipped there
#   CHROMIUM_BIN         a Chromium or Chrome for the tests of the page
# PARTS_DIR moves the folder: default /var/cache/sasori as root, ~/.cache/sasori otherwise. (Not root's
# home, because nobody else may read that, and PostgreSQL refuses to run as root.)
set -euo pipefail
umask 022

usage="usage: setup/parts.sh haproxy|test|next|wrk|instead|registry|archive|paths"
oldest_haproxy=2.6

# Raise the number when a part is unpacked differently. The old ones are then fetched again.
recipe=1

# Dependencies that only serve an installed system. apt is told that they are there already: they and what they
# would draw in (Perl, systemd, 100 MB of LLVM for PostgreSQL's JIT) would be most of the download.
left_out="adduser ca-certificates-java dbconfig-no-thanks debconf debconf-2.0 init-system-helpers iproute2 locales
  libjs-eonasdan-bootstrap-datetimepicker libjs-bootstrap4 libjs-jquery libjs-jquery-hotkeys libjs-moment
  libjs-moment-timezone libjs-mustache libjs-popper.js libjs-rickshaw fonts-glyphicons-halflings
  groff-base lsb-base man-db media-types passwd perl perl-base postgresql-client-common postgresql-common
  postgresql-common-dev python3 ssl-cert sysvinit-utils ucf util-linux x11-utils xdg-utils
  $(printf 'libllvm%s ' {14..25}) libllvm17t64"

say() { printf '%s\n' "$*" >&2; }
die() { say "setup/parts.sh: $*"; exit 1; }

if [ "$(id -u)" = 0 ]; then
  cache=${PARTS_DIR:-/var/cache/sasori}
else
  cache=${PARTS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/sasori}
fi
parts=$cache/parts-$recipe
distribution=$(. /etc/os-release 2>/dev/null && echo "${ID:-unknown}" || echo unknown)
release=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}" || true)

# One release of HAProxy per suite. PuppetDB 7 and 8 are always taken from the same suites, to test the same everywhere.
case $distribution in
  debian)
    haproxy_suites="bookworm trixie sid" puppetdb_suite=bookworm puppetdb8_suite=trixie kubectl_suite=trixie chromium_suite=bookworm
    components="main"
    ;;
  # Ubuntu's mirrors have no Debian suites, and one release of Ubuntu has one HAProxy. Its Chromium is a snap.
  ubuntu)
    haproxy_suites=$release puppetdb_suite=$release puppetdb8_suite="" kubectl_suite="" chromium_suite=""
    components="main universe"
    ;;
  *) haproxy_suites="" puppetdb_suite="" puppetdb8_suite="" kubectl_suite="" chromium_suite="" components="" ;;
esac

can_fetch() {
  [ -n "$puppetdb_suite" ] && command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null
}

# --- What a part is -------------------------------------------------------------------------------------------

packages_of() {
  case $1 in
    haproxy-*) echo "haproxy" ;;
    puppetdb-*) echo "puppetdb postgresql default-jre-headless openssl" ;;
    puppetdb8-*) echo "puppetdb default-jre-headless" ;; # It runs on the PostgreSQL of the other one.
    prometheus-*) echo "prometheus" ;;
    # The browser without its windows: GTK, CUPS and the rest of a desktop stay out.
    chromium-*) echo "chromium-headless-shell fonts-dejavu-core" ;;
    wrk-*) echo "wrk" ;;
    instead-*) echo "nginx" ;;
    registry-*) echo "docker-registry" ;;
    tools-*) echo "curl jq socat" ;;
    systemd-*) echo "systemd" ;;
    shells-*) echo "zsh fish" ;;
    kubectl-*) echo "kubernetes-client" ;;
    faketime-*) echo "libfaketime" ;;
  esac
}

paths_of() {
  case $1 in
    haproxy-experimental) printf 'next\t%s\n' "$2/usr/sbin/haproxy" ;;
    haproxy-*) printf 'haproxy\t%s\n' "$2/usr/sbin/haproxy" ;;
    prometheus-*) printf 'promtool\t%s\n' "$2/usr/bin/promtool" ;;
    chromium-*) printf 'chromium\t%s\n' "$2/usr/lib/chromium/chromium-headless-shell" ;;
    wrk-*) printf 'wrk\t%s\n' "$2/usr/bin/wrk" ;;
    instead-*) printf 'nginx\t%s\n' "$2/usr/sbin/nginx" ;;
    registry-*) printf 'registry\t%s\n' "$2/usr/bin/docker-registry" ;;
    tools-*) printf '%s\t%s\n' curl "$2/usr/bin/curl" jq "$2/usr/bin/jq" socat "$2/usr/bin/socat" ;;
    systemd-*) printf 'systemd-analyze\t%s\n' "$2/usr/bin/systemd-analyze" ;;
    shells-*) printf '%s\t%s\n' zsh "$2/usr/bin/zsh" fish "$2/usr/bin/fish" ;;
    kubectl-*) printf 'kubectl\t%s\n' "$2/usr/bin/kubectl" ;;
    faketime-*) printf 'faketime\t%s\n' "$2"/usr/lib/*/faketime/libfaketime.so.1 ;;
    puppetdb8-*)
      printf 'puppetdb8\t%s\n' "$2/etc/puppetdb"
      printf 'classpath8\t%s\n' "$(classpath_of "$2")"
      printf 'java8\t%s\n' "$2/usr/lib/jvm/default-java/bin/java"
      ;;
    puppetdb-*)
      printf 'puppetdb\t%s\n' "$2/etc/puppetdb"
      printf 'classpath\t%s\n' "$(classpath_of "$2")"
      printf 'java\t%s\n' "$2/usr/lib/jvm/default-java/bin/java"
      printf 'openssl\t%s\n' "$2/usr/bin/openssl"
      printf 'postgres\t%s\n' "$2"/usr/lib/postgresql/*/bin
      ;;
  esac
}

# PuppetDB's jar names its libraries by absolute paths, which mean nothing in a private root. So all that were
# unpacked go on the class path, each once (most have a link beside them).
classpath_of() {
  { echo "$1/classes" && find "$1"/usr/share/{puppetdb,java} -name '*.jar' -type f | sort; } | paste -sd :
}

# --- Fetching one part ----------------------------------------------------------------------------------------

# The address of the distribution's main archive, from the machine's own apt sources. Third parties use the same
# suite and component names, but only the archive has "<release>-updates" as well; and whatever is found here
# must be signed with the distribution's key.
archive_uri() {
  local uris
  uris=$(apt-get update --print-uris 2>/dev/null | sed -n "s|^'\([^']*\)/dists/\([^/']*\)/.*|\1 \2|p" | sort -u)
  awk -v release="$release" '
    $2 == release { base[$1] = 1; last = $1 }
    $2 == release "-updates" { updates[$1] = 1 }
    END { for (uri in base) if (uri in updates) last = uri; print last }' <<<"$uris"
}

# Downloads the packages $3... of suite $1 into $2/debs, with an apt that knows nothing of the machine's.
download() {
  local suite=$1 work=$2 uri keyring=/usr/share/keyrings/$distribution-archive-keyring.gpg
  shift 2
  # Experimental has only what is newer than in sid, of which nothing but HAProxy is wanted.
  [ "$suite" != experimental ] || suite="sid experimental"
  uri=$(archive_uri)
  [ -n "$uri" ] || die "no archive of $distribution \"$release\" in this machine's apt sources (/etc/apt)"
  [ -r "$keyring" ] || die "$keyring is missing; install the package $distribution-archive-keyring"

  mkdir -p "$work"/{lists,debs}/partial "$work/sources"
  cat >"$work/sources/archive.sources" <<END
Types: deb
URIs: $uri
Suites: $suite
Components: $components
Targets: Packages
Signed-By: $keyring
END
  # shellcheck disable=SC2086 # a list of words
  cat >"$work/status" <<END
Package: sasori-left-out
Status: install ok installed
Version: 1
Architecture: all
Maintainer: sasori
Description: stands for what the parts do not need
Provides: $(printf '%s (= 999:0), ' $left_out | sed 's/, $//')
END
  printf 'Package: haproxy\nPin: version 3.4.*\nPin-Priority: 990\n' >"$work/preferences"
  # Read after the machine's own apt.conf.d: its proxies stay, its hooks, which clean the machine's caches, go.
  cat >"$work/apt.conf" <<END
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Invoke;
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$work/sources";
Dir::Etc::Preferences "$work/preferences";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$work";
Dir::State::Lists "$work/lists";
Dir::State::Status "$work/status";
Dir::State::Extended_States "$work/extended_states";
Dir::Cache "$work";
Dir::Cache::Archives "$work/debs";
Dir::Log "$work";
APT::Sandbox::User "";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
APT::Get::Download-Only "true";
Acquire::Languages "none";
Acquire::Retries "3";
END
  apt-get -q -c "$work/apt.conf" update --error-on=any >"$work/log" 2>&1 &&
    apt-get -q -c "$work/apt.conf" install "$@" >>"$work/log" 2>&1 ||
    { tail -n 15 "$work/log" >&2; exit 1; }
}

# Unpacks the packages in $1 into root $2, so that they run there.
unpack() {
  local debs=$1 root=$2 deb link target
  # One /usr, as in every current release; older packages still bring files for /lib and /bin.
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
  for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
  for deb in "$debs"/*.deb; do
    # Not dpkg-deb --extract: that would replace the links above, and keep setuid bits.
    dpkg-deb --fsys-tarfile "$deb" |
      tar -x -C "$root" --keep-directory-symlink --no-same-owner --no-same-permissions \
        --exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale
  done
  # Absolute links (/etc/java-17-openjdk) mean this root, not the machine's.
  find "$root" -type l -lname '/*' -printf '%p\t%l\n' | while IFS=$'\t' read -r link target; do
    ln -sfn "$root$target" "$link"
  done
}

# Makes the programs in root $1 use the loader and the libraries of that root. It must be written into the
# programs: HAProxy's master runs itself again by its own path, PostgreSQL runs its siblings.
bind_libraries() {
  local root=$1 loader libs patch program
  loader=$(find "$root/usr" -name 'ld-linux*.so.*' -print -quit)
  libs=$(find "$root/usr/lib" -name libc.so.6 -printf '%h' -quit)
  patch=("$loader" --library-path "$libs" "$root/usr/bin/patchelf" --force-rpath)
  for program in "$root"/usr/{sbin/{haproxy,nginx},bin/{openssl,wrk,curl,jq,socat,promtool,systemd-analyze,zsh,fish,docker-registry},lib/{postgresql/*,jvm/*}/bin/*,lib/chromium/*-shell}; do
    if [ -f "$program" ] && [ ! -L "$program" ] && is_elf "$program"; then
      "${patch[@]}" --set-interpreter "$loader" --set-rpath "\$ORIGIN/../lib:$libs:$libs/systemd" "$program"
    fi
  done
  # Java's and PulseAudio's libraries have search paths of their own, which would hide those of the program.
  find "$root/usr/lib" \( -path '*/jvm/*.so' -o -name 'libpulse*.so*' \) -type f | while read -r program; do
    "${patch[@]}" --set-rpath "\$ORIGIN:\$ORIGIN/..:$libs:$libs/pulseaudio" "$program"
  done
}

# PuppetDB is Clojure, which Debian ships as source: it would be compiled at each start. Doing that once, here,
# takes 20 s and saves 15 s of every start.
compile_puppetdb() {
  local root=$1 services
  services=$(sed -n 's|^\([a-z][^/]*\)/.*|\1|p' "$root/etc/puppetdb/bootstrap.cfg")
  mkdir "$root/classes"
  "$root/usr/lib/jvm/default-java/bin/java" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC \
    -Dclojure.compile.path="$root/classes" -cp "$(classpath_of "$root")" clojure.main \
    -e "(run! compile '[puppetlabs.puppetdb.core $services]) (shutdown-agents)" >"$root/compile.log" 2>&1 ||
    { tail -n 15 "$root/compile.log" >&2; exit 1; }
}

is_elf() { [ "$(head -c 4 "$1" | tail -c 3)" = ELF ]; }

# A part without the stamp was interrupted, and is fetched again. (Do not call this in a condition: bash ignores
# "set -e" there.)
fetch() (
  set -E
  part=$1 suite=${1#*-} root=$parts/$1 work=$parts/.$1.work started=$SECONDS
  mkdir -p "$parts"
  exec 9>"$parts/.$part.lock"
  flock 9
  ! is_ready "$part" || exit 0
  say "$part: fetching from $distribution $suite ..."
  trap 'code=$?; rm -rf "$work"; [ $code = 0 ] || say "$part: failed, see above"' EXIT
  trap 'say "$part: setup/parts.sh line $LINENO: $BASH_COMMAND"' ERR
  rm -rf "$work" "$root"
  # shellcheck disable=SC2046 # a list of words
  download "$suite" "$work" $(packages_of "$part") patchelf
  unpack "$work/debs" "$root"
  bind_libraries "$root"
  case $part in puppetdb*) compile_puppetdb "$root" ;; esac
  touch "$root/ready"
  say "$part: ready in $((SECONDS - started)) s ($(du -sh "$work/debs" | cut -f 1) fetched)"
)

is_ready() { [ -e "$parts/$1/ready" ]; }

# All at once, because some wait for the mirror while others unpack.
fetch_all() {
  local part pid pids=() failed=0
  can_fetch || die "cannot fetch programs here: that needs Debian or Ubuntu with apt and dpkg.
  Name those you have: HAPROXY_BIN=/path/to/haproxy (or TEST_HAPROXY_BINS=/one:/other for the tests)."
  trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM # background jobs do not hear Ctrl-C
  for part in "$@"; do
    fetch "$part" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  [ $failed = 0 ] || die "not everything could be fetched. Run it again, or name programs of your own
  by HAPROXY_BIN (or TEST_HAPROXY_BINS=/one:/other for the tests)."
}

# --- What is needed, and where it is --------------------------------------------------------------------------

is_recent() {
  local version
  version=$("$1" -v 2>/dev/null | sed -n 's/^HA-\{0,1\}Proxy version \([0-9.]*\).*/\1/p')
  [ -n "$version" ] && printf '%s\n' "$oldest_haproxy" "$version" | sort -C -V
}

test_parts() {
  local suite part
  if [ -z "${TEST_HAPROXY_BINS:-${HAPROXY_BIN:-}}" ]; then
    for suite in $haproxy_suites; do echo "haproxy-$suite"; done
  fi
  for part in puppetdb prometheus systemd shells faketime tools; do echo "$part-${puppetdb_suite:-unknown}"; done
  [ -z "$puppetdb8_suite" ] || echo "puppetdb8-$puppetdb8_suite"
  [ -n "${KUBECTL_BIN:-}" ] || [ -z "$kubectl_suite" ] || echo "kubectl-$kubectl_suite"
  if [ -z "$(own_chromium)" ] && [ -n "$chromium_suite" ]; then echo "chromium-$chromium_suite"; fi
}

# The one that was named, or where none can be fetched (its packages are Debian's) the machine's own.
own_chromium() {
  if [ -n "${CHROMIUM_BIN:-}" ]; then
    echo "$CHROMIUM_BIN"
  elif [ -z "$chromium_suite" ]; then
    { command -v chromium google-chrome chromium-browser || true; } | head -n 1
  fi
}

print_paths() {
  local part
  tr ':' '\n' <<<"${TEST_HAPROXY_BINS:-${HAPROXY_BIN:-}}" | sed -n 's/^..*/haproxy\t&/p'
  [ -z "${KUBECTL_BIN:-}" ] || printf 'kubectl\t%s\n' "$KUBECTL_BIN"
  own_chromium | sed -n 's/^..*/chromium\t&/p'
  if [ -z "${TEST_HAPROXY_BINS:-${HAPROXY_BIN:-}}" ] && is_ready haproxy-experimental; then
    paths_of haproxy-experimental "$parts/haproxy-experimental"
  fi
  for part in $(test_parts); do
    if is_ready "$part"; then paths_of "$part" "$parts/$part"; else printf 'missing\t%s\n' "$part"; fi
  done
}

case ${1:-} in
  haproxy)
    if [ -n "${HAPROXY_BIN:-}" ]; then
      is_recent "$HAPROXY_BIN" || die "HAPROXY_BIN=$HAPROXY_BIN is not a HAProxy $oldest_haproxy or newer"
      printf 'haproxy\t%s\n' "$HAPROXY_BIN"
    elif found=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v haproxy) && is_recent "$found"; then
      printf 'haproxy\t%s\n' "$found"
    else
      fetch_all "haproxy-$release"
      paths_of "haproxy-$release" "$parts/haproxy-$release"
    fi
    ;;
  test)
    # shellcheck disable=SC2046 # a list of words
    fetch_all $(test_parts)
    print_paths
    ;;
  next)
    [ "$distribution" = debian ] || die "only Debian has it here; build one, and name it in TEST_HAPROXY_BINS"
    fetch_all haproxy-experimental
    paths_of haproxy-experimental "$parts/haproxy-experimental" | cut -f 2
    ;;
  wrk | instead | registry)
    needed=$1
    [ "$1" != instead ] || needed="instead tools"
    # shellcheck disable=SC2086 # a list of words
    fetch_all $(printf "%s-${puppetdb_suite:-unknown} " $needed)
    for part in $needed; do paths_of "$part-$puppetdb_suite" "$parts/$part-$puppetdb_suite"; done
    ;;
  archive)
    uri=$(archive_uri)
    [ -n "$uri" ] || die "no archive of $distribution \"$release\" in this machine's apt sources (/etc/apt)"
    printf '%s\n' "$uri"
    ;;
  paths) print_paths ;;
  *) say "$usage"; exit 2 ;;
esac
