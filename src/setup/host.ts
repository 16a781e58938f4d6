// What `sasori setup` finds on a host: Puppet's certificate, PuppetDB's address, what HAProxy's configuration says.
// Promises: it changes nothing; a file that is missing or unreadable counts as "not found", never as an error. What Puppet
// and HAProxy say here is a proposal that a person sees before it counts, so nothing here tries to understand all of their
// syntax.

import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import { promisify } from "node:util";
import { parseVariables } from "./env-file.js";

export interface Host {
  puppet: PuppetFiles | undefined;
  puppetdbUrl: string | undefined;
  haproxy: HaproxyFiles | undefined;
}

/** This host's certificate from Puppet's CA. All of these files exist. */
export interface PuppetFiles {
  certname: string;
  certFile: string;
  keyFile: string;
  caFile: string;
}

export interface HaproxyFiles {
  files: string[];
  /** Such as "2.8.5-1ubuntu3"; undefined if the program does not tell. */
  version: string | undefined;
  /** The variable from which its systemd unit takes further arguments. */
  options: "EXTRAOPTS" | "OPTIONS";
  /** What the distribution's own file for the unit has in that variable already. */
  given: string | undefined;
  /** Runtime API sockets that may change a map. */
  sockets: string[];
  chroot: string | undefined;
  /**
   * Backends with servers, in their order. `isRouted`: a variable of the request chooses the server. `hosts` are the servers'
   * addresses.
   */
  backends: { name: string; servers: string[]; hosts: string[]; isRouted: boolean }[];
  /** The result of a lookup chooses the backend, so each master is a pool of servers. */
  hasPools: boolean;
  /** Map files that the configuration names. */
  maps: string[];
}

// Puppet's own packages, then Debian's.
const CONFIGURATIONS = ["/etc/puppetlabs/puppet", "/etc/puppet"];
const SSL_FOLDERS = ["/etc/puppetlabs/puppet/ssl", "/var/lib/puppet/ssl", "/etc/puppet/ssl"];

// Debian's and RHEL's. The folder is RHEL's CFGDIR, which its unit names after the file.
const HAPROXY_FILE = "/etc/haproxy/haproxy.cfg";
const HAPROXY_FOLDER = "/etc/haproxy/conf.d";
const HAPROXY_SETTINGS = { EXTRAOPTS: "/etc/default/haproxy", OPTIONS: "/etc/sysconfig/haproxy" };
const VERSION_MS = 10_000;

/** `root` takes the place of `/` in tests. */
export async function lookAtHost(root = "/"): Promise<Host> {
  const at = (file: string) => path.join(root, file);
  return {
    puppet: await findPuppet(at),
    puppetdbUrl: await findPuppetdb(at),
    haproxy: await readHaproxy(at),
  };
}

type At = (file: string) => string;

const textOf = (file: string): Promise<string | undefined> => readFile(file, "utf8").catch(() => undefined);
const namesIn = (folder: string): Promise<string[]> => readdir(folder).catch(() => []);

/** If the CA is on this host, there are many certificates, but only this host's own key. */
async function findPuppet(at: At): Promise<PuppetFiles | undefined> {
  const [named, ssldir] = await puppetSettings(at);
  for (const folder of ssldir === undefined ? SSL_FOLDERS : [ssldir]) {
    const certificates = await namesIn(at(`${folder}/certs`));
    const keys = new Set(await namesIn(at(`${folder}/private_keys`)));
    const own = certificates.filter((name) => name !== "ca.pem" && keys.has(name)).sort();
    const file = named === undefined ? own[0] : own.find((name) => name === `${named}.pem`);
    if (file === undefined || (named === undefined && own.length > 1) || !certificates.includes("ca.pem"))
      continue;
    return {
      certname: file.replace(/\.pem$/, ""),
      certFile: at(`${folder}/certs/${file}`),
      keyFile: at(`${folder}/private_keys/${file}`),
      caFile: at(`${folder}/certs/ca.pem`),
    };
  }
  return undefined;
}

/** `certname` and `ssldir` of puppet.conf. [agent] overrides [main]. */
async function puppetSettings(at: At): Promise<[certname: string | undefined, ssldir: string | undefined]> {
  for (const folder of CONFIGURATIONS) {
    const text = await textOf(at(`${folder}/puppet.conf`));
    if (text === undefined) continue;
    const { main = {}, agent = {} } = parseIni(text);
    const settings = { ...main, ...agent };
    const ssldir = settings.ssldir?.startsWith("/") ? settings.ssldir : undefined;
    return [settings.certname?.toLowerCase(), ssldir];
  }
  return [undefined, undefined];
}

/** `server_urls = https://puppetdb1:8081,https://puppetdb2:8081`: Puppet asks the second if the first fails, and so does sasori. */
async function findPuppetdb(at: At): Promise<string | undefined> {
  for (const folder of CONFIGURATIONS) {
    const text = await textOf(at(`${folder}/puppetdb.conf`));
    const main = text === undefined ? undefined : parseIni(text).main;
    const urls = (main?.server_urls ?? "").split(",").map((url) => url.trim().replace(/\/+$/, ""));
    const all = [...new Set(urls.filter((url) => url !== ""))];
    if (all.length > 0) return all.join("|");
    if (main?.server) return `https://${main.server}:${main.port ?? "8081"}`;
  }
  return undefined;
}

/** `[section]` and `name = value`, as puppet.conf and puppetdb.conf are written. */
export function parseIni(text: string): Record<string, Record<string, string>> {
  const sections = new Map<string, [name: string, value: string][]>();
  let section = "main";
  for (const line of text.split("\n")) {
    const [, heading, name, value] = /^\s*(?:\[(\w+)\]|([\w-]+)\s*=\s*(.*?))\s*$/.exec(line) ?? [];
    if (heading !== undefined) section = heading;
    else if (name !== undefined && value !== undefined) {
      const setting: [string, string] = [name, value.replace(/^(["'])(.*)\1$/, "$2")];
      sections.set(section, [...(sections.get(section) ?? []), setting]);
    }
  }
  return Object.fromEntries(Array.from(sections, ([name, settings]) => [name, Object.fromEntries(settings)]));
}

async function readHaproxy(at: At): Promise<HaproxyFiles | undefined> {
  const folder = (await namesIn(at(HAPROXY_FOLDER))).filter((name) => name.endsWith(".cfg")).sort();
  const files = [HAPROXY_FILE, ...folder.map((name) => `${HAPROXY_FOLDER}/${name}`)];
  const texts = await Promise.all(files.map((file) => textOf(at(file))));
  if (texts[0] === undefined) return undefined;
  const unit = await textOf(at("/usr/lib/systemd/system/haproxy.service"));
  const options =
    unit?.includes("$EXTRAOPTS") === false && unit.includes("$OPTIONS") ? "OPTIONS" : "EXTRAOPTS";
  const settings = (await textOf(at(HAPROXY_SETTINGS[options]))) ?? "";
  return {
    files,
    version: await versionOf(at("/usr/sbin/haproxy")),
    options,
    given: parseVariables(settings)[options] || undefined,
    ...parseHaproxy(texts.join("\n")),
  };
}

/** "HAProxy version 2.8.5-1ubuntu3 2024/04/01 - https://haproxy.org/" */
async function versionOf(haproxy: string): Promise<string | undefined> {
  const said = await promisify(execFile)(haproxy, ["-v"], { timeout: VERSION_MS }).catch(() => undefined);
  return /^HA-?Proxy version (\S+)/.exec(said?.stdout ?? "")?.[1];
}

/** Up to 3.4. Some of those that are no backend have servers too. */
const SECTIONS =
  /^(global|defaults|frontend|backend|listen|resolvers|peers|userlist|cache|program|mailers|ring|log-forward|log-profile|http-errors|fcgi-app|crt-store|traces|acme|healthcheck)$/;

type Configured = Omit<HaproxyFiles, "files" | "version" | "options" | "given">;

/** What matters to sasori in a configuration of HAProxy. */
export function parseHaproxy(text: string): Configured {
  const found: Configured = { sockets: [], chroot: undefined, backends: [], hasPools: false, maps: [] };
  const maps = new Set<string>();
  let backend: HaproxyFiles["backends"][number] | undefined;
  for (const written of text.split("\n")) {
    const line = written.replace(/(^|\s)#.*/, "").replaceAll(/["']/g, "");
    const words = line.trim().split(/\s+/);
    const [first = "", second = "", third = ""] = words;
    if (SECTIONS.test(first))
      backend = /^(backend|listen)$/.test(first)
        ? { name: second, servers: [], hosts: [], isRouted: false }
        : undefined;
    if (first === "chroot") found.chroot = second;
    const socket = third.replace(/^unix@/, "");
    if (first === "stats" && second === "socket" && socket.startsWith("/")) {
      if (words[words.indexOf("level") + 1] === "admin") found.sockets.push(socket);
    }
    if (backend !== undefined && /^server(-template)?$/.test(first)) {
      if (backend.servers.length === 0) found.backends.push(backend);
      backend.servers.push(second);
      // server-template <prefix> <count> <host>
      const host = first === "server" ? third : words[3];
      backend.hosts.push((host ?? "").replace(/:\d+$/, ""));
    }
    if (backend !== undefined && first === "use-server" && second.startsWith("%[")) backend.isRouted = true;
    if (first === "use_backend" && second.startsWith("%[")) found.hasPools = true;
    for (const [, map = ""] of line.matchAll(/\bmap(?:_\w+)*\(([^),\s]+)/g)) maps.add(map);
  }
  found.maps = [...maps];
  return found;
}
