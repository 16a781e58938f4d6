// Proposes settings from what was found on a host: for sasori, and for the gateway, unless HAProxy already routes by a map of
// nodes. Pure: nothing is read, asked or written. Each setting says where it comes from.

import path from "node:path";
import { counted } from "../counts.js";
import { isAtLeast } from "../releases.js";
import { parseVariables } from "./env-file.js";
import type { HaproxyFiles, Host } from "./host.js";

export interface Setting {
  name: string;
  value: string;
  /** Where the value comes from, or why it is this one. */
  why: string;
}

export interface Proposal {
  /** /etc/sasori/sasori.env */
  daemon: Setting[];
  /** /etc/sasori/gateway.env; undefined where HAProxy's own configuration routes by a map. */
  gateway: Setting[] | undefined;
  /** Files to put into /etc/sasori/ssl. */
  certificates: Certificate[];
  /** What a person must do before this can work. */
  missing: string[];
  /** What the proposal leaves out. A person should do it afterwards. */
  remarks: string[];
}

export interface Certificate {
  file: string;
  /** Their contents go into that file, one after the other. */
  from: string[];
  /** Who may read it besides root. */
  reader: "sasori" | "root";
}

const SSL = "/etc/sasori/ssl";
const MAP = "/var/lib/sasori/node-master.map";
const GATEWAY_CFG = "/etc/haproxy/sasori/haproxy.cfg";
const GATEWAY_SOCKET = "/run/haproxy/sasori.sock";

/** As many server lines as haproxy.cfg has. */
const MAX_MASTERS = 32;

/** The settings in the files that an earlier setup wrote. A person may have changed them since. */
export interface Kept {
  daemon: Readonly<Record<string, string>>;
  gateway: Readonly<Record<string, string>>;
}

/**
 * `producers` are those of PuppetDB's nodes, the one with the most nodes first; undefined if PuppetDB could not be asked.
 * `given` are the variables in the environment of this command. They override kept settings, and those override what was found.
 */
export function propose(
  host: Host,
  producers: readonly string[] | undefined,
  given: Readonly<Record<string, string | undefined>>,
  kept: Kept = { daemon: {}, gateway: {} },
): Proposal {
  const proposal: Proposal = { daemon: [], gateway: undefined, certificates: [], missing: [], remarks: [] };
  const say = (name: string, value: string | undefined, why: string) => {
    const set = given[name] || kept.daemon[name];
    if (set !== undefined && set !== value) {
      proposal.daemon.push({ name, value: set, why: given[name] ? "set by you" : "as it was in sasori.env" });
    } else if (value !== undefined) proposal.daemon.push({ name, value, why });
    return set ?? value;
  };
  const url = say("SASORI_PUPPETDB_URL", host.puppetdbUrl, "puppetdb.conf");
  if (url === undefined)
    proposal.missing.push(
      "PuppetDB's address: no puppetdb.conf on this host names it, so set SASORI_PUPPETDB_URL",
    );
  if (url?.startsWith("https:")) certify(host, say, proposal);

  const own = ownMap(host);
  if (own === undefined) {
    say("SASORI_HAPROXY", GATEWAY_SOCKET, "as in gateway.env");
    proposal.gateway = gateway(host, producers, kept.gateway, proposal);
  } else {
    const socket = host.haproxy?.sockets[0];
    if (socket === undefined && !given.SASORI_HAPROXY)
      proposal.missing.push(
        'a line "stats socket /run/haproxy/admin.sock mode 660 level admin" in haproxy.cfg',
      );
    say("SASORI_HAPROXY", socket, "haproxy.cfg");
    const backend = own.backends.find(({ isRouted }) => isRouted);
    if (host.haproxy?.hasPools && backend === undefined) proposePools(own.backends, producers, say, proposal);
    else
      say(
        "SASORI_BACKEND",
        (backend ?? own.backends[0])?.name,
        "the backend of haproxy.cfg that the map leads to",
      );
  }
  const map = own?.map ?? MAP;
  say("SASORI_MAP_FILE", map, own === undefined ? "as in gateway.env" : "haproxy.cfg");
  say("SASORI_STATE_FILE", `${path.dirname(map)}/state.json`, "beside the map");
  // Settings for https that are no longer needed, because the URL is now http.
  const isOver = (name: string) => !given[name] && /^SASORI_PUPPETDB_(CERT|KEY|CA)$/.test(name);
  for (const name of Object.keys({ ...kept.daemon, ...given }))
    if (
      !isOver(name) &&
      name.startsWith("SASORI_") &&
      !proposal.daemon.some((setting) => setting.name === name)
    )
      say(name, undefined, "");
  return proposal;
}

function certify(
  { puppet }: Host,
  say: (name: string, value: string | undefined, why: string) => string | undefined,
  { certificates, missing }: Proposal,
): void {
  const unset: string[] = [];
  const why = puppet === undefined ? "" : `this host's Puppet certificate, ${puppet.certname}`;
  const files = [
    ["SASORI_PUPPETDB_CERT", "cert.pem", puppet?.certFile],
    ["SASORI_PUPPETDB_KEY", "key.pem", puppet?.keyFile],
    ["SASORI_PUPPETDB_CA", "ca.pem", puppet?.caFile],
  ] as const;
  for (const [name, file, from] of files) {
    const value = say(name, from === undefined ? undefined : `${SSL}/${file}`, why);
    if (value === `${SSL}/${file}` && from !== undefined)
      certificates.push({ file: value, from: [from], reader: "sasori" });
    if (value === undefined) unset.push(name);
  }
  if (unset.length > 0)
    missing.push(
      `a certificate of Puppet's CA: run \`puppet agent --test\` here, or set ${unset.join(", ")}`,
    );
}

/** The backends that have a server with a producer's name or host. sasori itself finds a producer's pool in the same way. */
function proposePools(
  backends: HaproxyFiles["backends"],
  producers: readonly string[] | undefined,
  say: (name: string, value: string | undefined, why: string) => string | undefined,
  { missing }: Proposal,
): void {
  const isPool = ({ name, servers, hosts }: HaproxyFiles["backends"][number]) =>
    producers?.some((producer) => [name, ...servers, ...hosts].includes(producer));
  const pools = backends.filter(isPool).map(({ name }) => name);
  say("SASORI_ROUTE_TO", "backends", "the map of haproxy.cfg leads to backends");
  const found = pools.length === 0 ? undefined : pools.join(",");
  const set = say("SASORI_BACKEND", found, "the backends of haproxy.cfg that have puppetservers");
  if (set === undefined)
    missing.push(
      "the backends that are masters: no server in haproxy.cfg has the name or host of a puppetserver in PuppetDB, so set SASORI_BACKEND, for example SASORI_BACKEND=fra,lon",
    );
}

/** Kept settings without the PuppetDB URL, if that PuppetDB no longer answers and puppetdb.conf names another one. */
export function withoutMoved(host: Host, kept: Kept): Kept | undefined {
  const { SASORI_PUPPETDB_URL: url, ...daemon } = kept.daemon;
  const isMoved = url !== undefined && host.puppetdbUrl !== undefined && host.puppetdbUrl !== url;
  return isMoved ? { ...kept, daemon } : undefined;
}

/** A map of nodes that HAProxy's own configuration routes by: one under sasori's folder, or the only one of a routed backend. */
function ownMap({ haproxy }: Host) {
  const backends = haproxy?.backends ?? [];
  const named = haproxy?.maps.find((map) => path.basename(map) === path.basename(MAP));
  const only = haproxy?.maps.length === 1 && (haproxy.hasPools || backends.some(({ isRouted }) => isRouted));
  const map = named ?? (only ? haproxy?.maps[0] : undefined);
  return map === undefined ? undefined : { map, backends };
}

function gateway(
  host: Host,
  producers: readonly string[] | undefined,
  kept: Kept["gateway"],
  { certificates, missing, remarks }: Proposal,
): Setting[] {
  const { options = "EXTRAOPTS", given } = host.haproxy ?? {};
  // Debian's unit has the master's socket in this variable, RHEL's has not.
  const before = given ?? (options === "OPTIONS" ? "" : "-S /run/haproxy-master.sock");
  const settings: Setting[] = [
    {
      name: options,
      value: before.includes(GATEWAY_CFG) ? before : `${before} -f ${GATEWAY_CFG}`.trim(),
      why: "the gateway is one more file of this HAProxy",
    },
    { name: "NODE_MASTER_MAP", value: MAP, why: "as in sasori.env" },
    {
      name: "HAPROXY_SOCKET",
      value: GATEWAY_SOCKET,
      why: "in HAProxy's own folder, so that its group may use the socket",
    },
    {
      name: "GATEWAY_ADDRESS",
      value: "127.0.0.1",
      why: "for tools on this host only; 0.0.0.0 lets all hosts in",
    },
    { name: "GATEWAY_PORT", value: "8080", why: "" },
    { name: "STATS_USER", value: "sasori", why: "the stats page on 127.0.0.1:8081" },
  ];
  const chroot = host.haproxy?.chroot;
  if (chroot !== undefined) settings.push({ name: "HAPROXY_CHROOT", value: chroot, why: "haproxy.cfg" });
  if (host.haproxy === undefined) missing.push("HAProxy: apt install haproxy, or dnf install haproxy");
  const version = host.haproxy?.version;
  if (version !== undefined && !isAtLeast(version, 2, 6))
    missing.push(
      `HAProxy 2.6 or newer for the gateway; this is ${version}: upgrade it, or let your own haproxy.cfg route by the map ("A gateway of your own" in docs/debian.md) and run this again`,
    );
  const numbers = Object.keys(kept).map((name) => Number(/^MASTER(\d+)$/.exec(name)?.[1] ?? 0));
  const last = Math.max(0, ...numbers);
  if (last === 0 && (producers === undefined || producers.length === 0))
    missing.push(
      producers === undefined
        ? "the puppetservers (MASTER1 and so on in gateway.env): PuppetDB knows them, but could not be asked"
        : "the puppetservers (MASTER1 and so on in gateway.env): no node has submitted to PuppetDB yet",
    );
  const known = new Set(Object.values(kept));
  const others = (producers ?? []).filter((name) => !known.has(name) && !known.has(`${name}:8140`));
  const room = Math.max(0, MAX_MASTERS - last);
  const leftOut = others.slice(room);
  if (leftOut.length > 0)
    remarks.push(
      `gateway.env takes ${MAX_MASTERS} puppetservers, and PuppetDB has ${counted(leftOut.length, "other")}: ${leftOut.join(", ")}. Unless they have one already, add a server line for each to ${GATEWAY_CFG}, as for MASTER32 but with its name and address. Or set SASORI_NEW_MASTERS to a pattern for their names ("Masters that come and go" in docs/gateway.md)`,
    );
  for (const [index, producer] of others.slice(0, room).entries()) {
    const name = `MASTER${last + index + 1}`;
    settings.push({ name, value: `${producer}:8140`, why: "a producer in PuppetDB" });
    settings.push({ name: `${name}_NAME`, value: producer, why: "its name in the map" });
  }
  if (host.puppet !== undefined) {
    const { certFile, keyFile } = host.puppet;
    settings.push({ name: "MASTERS_CA", value: `${SSL}/ca.pem`, why: "puppetservers speak TLS" });
    settings.push({
      name: "MASTERS_CERT",
      value: `${SSL}/gateway.pem`,
      why: "this host's Puppet certificate",
    });
    certificates.push({ file: `${SSL}/gateway.pem`, from: [certFile, keyFile], reader: "root" });
    if (!certificates.some(({ file }) => file === `${SSL}/ca.pem`))
      certificates.push({ file: `${SSL}/ca.pem`, from: [host.puppet.caFile], reader: "sasori" });
  }
  // HAProxy 2.6 pauses while it returns the memory of a replaced map to the system. This variable makes the pause shorter.
  settings.push({
    name: "GLIBC_TUNABLES",
    value: "glibc.malloc.mxfast=0",
    why: "shorter pauses of HAProxy 2.6",
  });
  const why = "as it was in gateway.env";
  const isNew = (name: string) => name !== "STATS_PASSWORD" && !settings.some((one) => one.name === name);
  const more = Object.entries(kept).filter(([name]) => isNew(name));
  return [
    ...settings.map((one) => {
      const value = kept[one.name];
      return value === undefined || value === one.value ? one : { ...one, value, why };
    }),
    ...more.map(([name, value]) => ({ name, value, why })),
  ];
}

const BY_SETUP = "written by `sasori setup`";

/**
 * The settings in such a file. Empty for a file that setup has not written: the package's own file has only example names.
 */
export function parseEnvFile(text: string): Record<string, string> {
  if (!text.split("\n", 1)[0]?.includes(BY_SETUP)) return {};
  return parseVariables(text);
}

/** A file for systemd and for a shell. */
export function envFile(about: string, settings: readonly Setting[]): string {
  const lines = settings.map(({ name, value, why }) => {
    const shown = /^[\w./:@%+=,-]*$/.test(value) ? value : `"${value.replace(/["\\$`]/g, "\\$&")}"`;
    return `${why === "" ? "" : `# ${why}\n`}${name}=${shown}\n`;
  });
  return `# ${about}, ${BY_SETUP}. Read by systemd and by a shell.\n${lines.join("")}`;
}
