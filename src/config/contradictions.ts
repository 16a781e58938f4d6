// Contradictions between variables. A single wrong value is found by its form (forms.ts).

import path from "node:path";
import { quote } from "../errors.js";
import { isMaster } from "../node-map.js";
import { listenAddress } from "./forms.js";
import { Env } from "./variables.js";

/** Variables that are set, by name. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** The contradictions between variables, each in one sentence. */
export function contradictions(env: Environment): string[] {
  const problems = [...poolProblems(env), ...puppetdbContradictions(env)];
  const { SASORI_HAPROXY_CA: haproxyCa, SASORI_HAPROXY_CERT: haproxyCert } = env;
  const isTls = /(^|,)\s*tls(\+dns)?:/.test(env.SASORI_HAPROXY ?? "");
  if ((haproxyCert === undefined) !== (env.SASORI_HAPROXY_KEY === undefined)) {
    problems.push("SASORI_HAPROXY_CERT and SASORI_HAPROXY_KEY belong together: set both or neither");
  }
  if (isTls && haproxyCa === undefined) {
    problems.push(
      "SASORI_HAPROXY has a tls:// endpoint: set SASORI_HAPROXY_CA to the CA that signed its certificate",
    );
  }
  if (!isTls && haproxyCa !== undefined) {
    problems.push("SASORI_HAPROXY_CA is set, but SASORI_HAPROXY has no tls:// endpoint");
  }
  const { SASORI_PROBE_CA: probeCa, SASORI_PROBE_CERT: probeCert, SASORI_PROBE_KEY: probeKey } = env;
  if ((probeCert === undefined) !== (probeKey === undefined)) {
    problems.push("SASORI_PROBE_CERT and SASORI_PROBE_KEY belong together: set both or neither");
  }
  if (probeCert !== undefined && probeCa === undefined) {
    problems.push("SASORI_PROBE_CERT needs SASORI_PROBE_CA: without that, masters are asked by plain HTTP");
  }
  if (probeCa !== undefined && env.SASORI_PROBE_PATH === undefined) {
    problems.push("SASORI_PROBE_CA needs SASORI_PROBE_PATH: without that, no master is asked");
  }
  const reports = ["LISTEN", "CA", "CERT", "KEY"].map((part) => `SASORI_REPORTS_${part}`);
  const missing = reports.filter((name) => env[name] === undefined);
  if (missing.length > 0 && missing.length < reports.length) {
    problems.push(`${reports.join(", ")} belong together: set ${missing.join(" and ")} too, or none of them`);
  }
  const { SASORI_STATE_URL: state, SASORI_STATE_CERT: stateCert, SASORI_STATE_KEY: stateKey } = env;
  if ((stateCert === undefined) !== (stateKey === undefined)) {
    problems.push("SASORI_STATE_CERT and SASORI_STATE_KEY belong together: set both or neither");
  }
  for (const name of ["SASORI_STATE_PASSWORD_FILE", "SASORI_STATE_CA", "SASORI_STATE_CERT"])
    if (env[name] !== undefined && state === undefined) problems.push(`${name} needs SASORI_STATE_URL`);
  if (env.SASORI_STATE_CA !== undefined && state?.includes("sslmode=disable")) {
    problems.push("SASORI_STATE_CA is set, but SASORI_STATE_URL has sslmode=disable: remove one of them");
  }
  const listen = listenAddress.safeParse(env.SASORI_LISTEN ?? "127.0.0.1:0").data;
  if (listen !== undefined && !isLoopback(listen.host) && env.SASORI_API_TOKEN_FILE === undefined) {
    problems.push(
      `SASORI_LISTEN is beyond loopback (${quote(listen.host)}): set SASORI_API_TOKEN_FILE, or listen on 127.0.0.1`,
    );
  }
  const files = [env.SASORI_MAP_FILE, env.SASORI_STATE_FILE, env.SASORI_PRIORITY_FILE].filter((file) => file);
  if (new Set(files.map((file) => path.normalize(file ?? ""))).size !== files.length) {
    problems.push("SASORI_MAP_FILE, SASORI_STATE_FILE and SASORI_PRIORITY_FILE must be different files");
  }
  const name = env.SASORI_MAP_NAME ?? env.SASORI_MAP_FILE;
  const { SASORI_PRIORITY_FILE: priority, SASORI_MAP_FILE: map } = env;
  // HAProxy is asked for the priority map by its base name: nodes' masters and classes would get into one map.
  if (name && priority && map !== priority && path.basename(name) === path.basename(priority)) {
    const which = env.SASORI_MAP_NAME === undefined ? "SASORI_MAP_FILE" : "SASORI_MAP_NAME";
    problems.push(
      `${which} and SASORI_PRIORITY_FILE have the same base name (${quote(path.basename(name))}): they must be different maps`,
    );
  }
  return problems;
}

function poolProblems(env: Environment): string[] {
  const { SASORI_BACKEND: backend, SASORI_MASTER_ALIASES: aliases } = env;
  const problems: string[] = [];
  if (env.SASORI_ROUTE_TO !== "backends") {
    if (backend !== undefined && !isMaster(backend) && Env.shape.SASORI_BACKEND.safeParse(backend).success)
      problems.push(
        `SASORI_BACKEND is ${quote(backend)}: expected the name of one HAProxy backend; where the masters are backends, set SASORI_ROUTE_TO=backends`,
      );
    return problems;
  }
  if (backend === undefined && aliases === undefined)
    problems.push(
      "SASORI_ROUTE_TO=backends needs to know the backends that are masters: set SASORI_BACKEND, or name them in SASORI_MASTER_ALIASES",
    );
  if (env.SASORI_NEW_MASTERS !== undefined)
    problems.push(
      "SASORI_NEW_MASTERS cannot be used with SASORI_ROUTE_TO=backends: it adds servers to one backend, and HAProxy cannot add a backend at run time",
    );
  return problems;
}

function puppetdbContradictions(env: Environment): string[] {
  const problems: string[] = [];
  const url = env.SASORI_PUPPETDB_URL ?? "";
  const estates = url.split(",").length;
  const listOf = (name: string) => (env[name] ?? "").split(",").map((file) => file.trim());
  const [certs, keys] = [listOf("SASORI_PUPPETDB_CERT"), listOf("SASORI_PUPPETDB_KEY")];
  if (certs.length !== keys.length || certs.some((file, estate) => (file === "") !== (keys[estate] === "")))
    problems.push("SASORI_PUPPETDB_CERT and SASORI_PUPPETDB_KEY belong together: set both or neither");
  for (const part of ["CERT", "KEY", "CA", "TOKEN_FILE"]) {
    const count = listOf(`SASORI_PUPPETDB_${part}`).length;
    if (url !== "" && count > 1 && count !== estates)
      problems.push(
        `SASORI_PUPPETDB_${part} names ${count} files and SASORI_PUPPETDB_URL ${estates === 1 ? "one estate" : `${estates} estates`}: name one file for all, or one for each (see docs/estates.md)`,
      );
  }
  const isSet = ["CERT", "KEY", "CA"].some((part) => env[`SASORI_PUPPETDB_${part}`] !== undefined);
  if (isSet && url !== "" && !/(^|[,|])\s*(?!http:)/.test(url))
    problems.push(`SASORI_PUPPETDB_URL is ${quote(url)}: certificates need an https URL`);
  const urls = url.split(/[,|]/).map((one) => one.trim());
  if (env.SASORI_PUPPETDB_TOKEN_FILE !== undefined && url !== "" && !urls.some(mayHaveToken))
    problems.push(
      `SASORI_PUPPETDB_URL is ${quote(url)}: a token needs an https URL, or an http one of this machine`,
    );
  return problems;
}

/** A token is sent only over https or to this machine. Over plain HTTP it could be read on the way. */
export const mayHaveToken = (url: string): boolean =>
  /^https:/i.test(url) || (URL.canParse(url) && isLoopback(new URL(url).hostname.replace(/^\[|\]$/g, "")));

export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}
