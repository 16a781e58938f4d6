// The ways of the benchmark `instead`: sasori, the scripts in instead/, and the gateway that each brings the map to.
// Each gateway answers a request itself, with the master that its map has for the node, and has the fleet as it is at
// first.

import { execFile } from "node:child_process";
import { mkdir, symlink, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { freePort } from "../test/support/child.js";
import { lookupConfig, newestHaproxy, startSasori } from "./daemon.js";
import { FLEET, masterOf, nameOf } from "./fleet.js";
import {
  type Config,
  HAPROXY_ENV,
  type HaproxyBinary,
  haproxyBinaries,
  listed,
  preciseCpuMs,
  type Stage,
} from "./stage.js";

const run = promisify(execFile);
const SCRIPTS = fileURLToPath(new URL("../../bench/instead/", import.meta.url));
const SCRIPT_MS = 60_000;

/** Scripts for HAProxy, and whether they run on its oldest release as well, where maps are slow to change. */
const FOR_HAPROXY = [
  { script: "clear", name: "script: clear, add", isForOldest: false },
  { script: "swap", name: "script: new version", isForOldest: true },
  { script: "set", name: "script: set the difference", isForOldest: true },
  { script: "lua", name: "file, Lua in HAProxy", isForOldest: false },
  { script: "reload", name: "file, reload", isForOldest: false },
] as const;

interface Gateway {
  /** "HAProxy 3.2.26" */
  name: string;
  port: number;
  pid: number;
}

/** What bringing the map out took: processor time of the way's own programs, and the wait for PuppetDB. */
export interface Effort {
  ownCpuMs: number;
  puppetdbMs: number;
}

export interface Way {
  name: string;
  gateway: Gateway;
  bringOut: () => Promise<Effort>;
}

/** All on the newest HAProxy, some on the oldest as well, and nginx. */
export async function startAll(stage: Stage, puppetdbUrl: string): Promise<Way[]> {
  const programs = path.join(stage.folder, "bin");
  await mkdir(programs);
  for (const name of ["nginx", "curl", "jq", "socat"])
    await symlink(programOf(name), path.join(programs, name));
  // Says how long it took, whoever runs it.
  await writeFile(path.join(stage.folder, ".curlrc"), 'write-out = "%{stderr}curl %{time_total}\\n"\n');
  const env = {
    PATH: `${programs}:${process.env.PATH}`,
    CURL_HOME: stage.folder,
    PUPPETDB_URL: puppetdbUrl,
  };
  const newest = newestHaproxy();
  const [oldest = newest] = haproxyBinaries();
  const ways = await startHaproxys(stage, newest, FOR_HAPROXY, env);
  if (oldest.bin !== newest.bin) {
    const scripts = FOR_HAPROXY.filter(({ isForOldest }) => isForOldest);
    ways.push(...(await startHaproxys(stage, oldest, scripts, env)));
  }
  return [...ways, await startNginx(stage, env)];
}

async function startHaproxys(
  stage: Stage,
  { version, bin }: HaproxyBinary,
  scripts: readonly { script: string; name: string }[],
  env: { PATH: string; PUPPETDB_URL: string },
): Promise<Way[]> {
  const start = async (name: string) => {
    const map = path.join(stage.folder, `${version}-${name}.map`);
    await writeFile(
      map,
      linesOf((node, master) => `${node} ${master}\n`),
    );
    const lines = name === "lua" ? [`lua-load "${SCRIPTS}reload.lua" "${map}"`] : [];
    const gateway = await startHaproxy(stage, `${version}-${name}`, { version, bin }, map, lines);
    return { map, gateway };
  };
  const own = await start("sasori");
  const sasori = await startSasori(stage, `${version}-daemon`, {
    SASORI_PUPPETDB_URL: env.PUPPETDB_URL,
    SASORI_HAPROXY: own.gateway.socket,
    SASORI_MAP_FILE: own.map,
  });
  const pass = async (): Promise<Effort> => {
    const before = preciseCpuMs(sasori.pid);
    const report = await sasori.sync({});
    if (report.outcome !== "done") throw new Error(JSON.stringify(report));
    return { ownCpuMs: preciseCpuMs(sasori.pid) - before, puppetdbMs: report.phasesMs.fetch };
  };
  const ways: Way[] = [{ name: "sasori", gateway: own.gateway, bringOut: pass }];
  for (const { script, name } of scripts) {
    const { map, gateway } = await start(script);
    const places = { ...env, MAP: map, SOCKET: gateway.socket, MASTER_SOCKET: gateway.masterSocket };
    ways.push({ name, gateway, bringOut: () => runScript(script, places) });
  }
  return ways;
}

function programOf(name: string): string {
  const [at] = listed("instead", name);
  if (at === undefined) throw new Error(`no ${name}: run setup/parts.sh instead`);
  return at;
}

/** All in the same mode and with all that a reload without a gap wants. */
async function startHaproxy(
  stage: Stage,
  name: string,
  { version, bin }: HaproxyBinary,
  map: string,
  lines: readonly string[],
) {
  const port = await freePort();
  const socket = path.join(stage.folder, `${name}.sock`);
  const masterSocket = path.join(stage.folder, `${name}.master`);
  const { text } = seamless(lookupConfig(map, port, socket, lines));
  const file = path.join(stage.folder, `${name}.cfg`);
  await writeFile(file, text);
  const isReady = async () => (await fetch(`http://127.0.0.1:${port}/`)).status === 200;
  const command = [bin, "-W", "-S", masterSocket, "-f", file];
  const pid = await stage.program(name, command, HAPROXY_ENV, isReady);
  return { name: `HAProxy ${version}`, port, pid, socket, masterSocket };
}

const seamless = ({ text }: Config): Config => ({
  text: text
    .replace("level admin", "level admin expose-fd listeners")
    .replace("  mode http\n", "  mode http\n  option idle-close-on-response\n"),
});

async function startNginx(stage: Stage, env: { PATH: string }): Promise<Way> {
  const map = path.join(stage.folder, "nginx.map");
  const file = path.join(stage.folder, "nginx.conf");
  await writeFile(
    map,
    linesOf((node, master) => `${node} ${master};\n`),
  );
  const port = await freePort();
  await writeFile(file, nginxConfig(stage.folder, map, port));
  const nginx = programOf("nginx");
  const isReady = async () => (await fetch(`http://127.0.0.1:${port}/`)).status === 200;
  const pid = await stage.program("nginx", [nginx, "-e", "stderr", "-c", file], {}, isReady);
  const { stderr } = await run(nginx, ["-v"]);
  const version = `nginx ${/nginx\/([\d.]+)/.exec(stderr)?.[1]}`;
  const bringOut = () => runScript("nginx", { ...env, MAP: map, NGINX_CONF: file });
  return { name: "file, reload", gateway: { name: version, port, pid }, bringOut };
}

/** Room for all names in the map's hash: with its defaults nginx warns and builds a slower one. */
function nginxConfig(folder: string, map: string, port: number): string {
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(
    (name) => `  ${name}_temp_path ${folder}/nginx-${name};\n`,
  );
  return `daemon off;
user root;
worker_processes auto;
pid ${folder}/nginx.pid;
events {
  worker_connections 1024;
}
http {
  access_log off;
${paths.join("")}  map_hash_max_size ${2 ** Math.ceil(Math.log2(2 * FLEET))};
  map_hash_bucket_size 256;
  map $http_x_node_name $master {
    default none;
    include ${map};
  }
  server {
    listen 127.0.0.1:${port};
    default_type text/plain;
    return 200 $master;
  }
}
`;
}

async function runScript(script: string, env: Record<string, string>): Promise<Effort> {
  // What bash's `time` counts are the processor times of all programs that the script has run.
  const timed = ["-c", 'TIMEFORMAT="cpu %3U %3S"; time "$0"', path.join(SCRIPTS, `${script}.sh`)];
  const { stderr } = await run("bash", timed, { env, timeout: SCRIPT_MS });
  const [, user, system] = /^cpu (\S+) (\S+)$/m.exec(stderr) ?? [];
  const [, curl] = /^curl (\S+)$/m.exec(stderr) ?? [];
  return { ownCpuMs: (Number(user) + Number(system)) * 1_000, puppetdbMs: Number(curl) * 1_000 };
}

const linesOf = (line: (node: string, master: string) => string): string =>
  Array.from({ length: FLEET }, (_, index) => line(nameOf(index + 1), masterOf(index + 1))).join("");
