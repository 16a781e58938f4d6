// docs/reference.md is written by this test, from the program itself: `npm run reference`. A plain run compares it.
// It also checks the codes, metrics and variables that other documents name.

import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { EXIT_CODES } from "../src/cli/exit-codes.js";
import { describeVariables, readConfig, type Variable } from "../src/config.js";
import { EventStream } from "../src/http/event-stream.js";
import { History } from "../src/http/history.js";
import { buildApi } from "../src/http/http-api.js";
import { Metrics } from "../src/http/metrics.js";
import { NodeList } from "../src/http/node-list.js";
import { Overview } from "../src/http/overview.js";
import { ERRORS, TROUBLES } from "../src/http/troubles.js";
import { LoopDelay } from "../src/loop-delay.js";
import { hasNode, masterAsker } from "../src/probe.js";
import { Resolver } from "../src/resolve.js";
import { assemble, Sync } from "../src/sync.js";
import { Watchdog } from "../src/watchdog.js";

const ROOT = new URL("../", import.meta.url);
const read = (name: string) => readFileSync(new URL(name, ROOT), "utf8");
const unique = (names: Iterable<string>) => [...new Set(names)].sort();

/** The parts of a daemon that has not started: it has asked nobody and does not listen. */
async function idleDaemon() {
  const config = readConfig({
    SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
    SASORI_HAPROXY: "none",
    SASORI_MAP_FILE: "/nonexistent/node-master.map",
  });
  const parts = assemble(config);
  const sync = new Sync(parts);
  const nodes = new NodeList(sync.fleet.map);
  const history = new History();
  const events = new EventStream();
  const delay = new LoopDelay();
  const metrics = new Metrics({ sync, puppetdb: parts.puppetdb, nodes, events, delay, version: "" });
  const watchdog = new Watchdog();
  const targets = parts;
  const overview = new Overview({
    ...{ sync, history, nodes, targets, version: "", watchdog, delay, replica: "" },
  });
  const resolver = new Resolver({
    fleet: sync.fleet,
    puppetdb: parts.puppetdb,
    resolve: () => sync.resolver(),
    knowsServers: () => sync.knowsServers,
    servers: () => [],
    probePath: undefined,
    hasNode: hasNode(masterAsker(config)),
    onObservation: () => undefined,
  });
  const api = await buildApi({ sync, overview, history, events, resolver, metrics, version: "" });
  await api.ready();
  const close = async () => {
    await api.close();
    await parts.puppetdb.close();
    delay.stop();
  };
  return { api, metrics, close };
}

const cell = (text: string) => text.replaceAll("|", "\\|");
const table = (head: readonly string[], rows: readonly (readonly string[])[]) =>
  [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map(cell).join(" | ")} |`).join("\n");

const code = (text: string) => `\`${text}\``;

function variableRow({ name, default: fallback, meaning, example }: Variable): string[] {
  const isWords = /^(none|required|.* .*)$/.test(fallback) && !fallback.includes("*");
  return [code(name), isWords ? fallback : code(fallback), meaning, code(example)];
}

interface Metric {
  name: string;
  help: string;
  type: string;
  labelNames: readonly string[];
}

/** Node's own metrics, which prom-client collects, are not sasori's. */
const metricsOf = ({ registry }: Metrics): Metric[] =>
  (registry.getMetricsAsArray() as unknown as Metric[])
    .filter(({ name }) => name.startsWith("sasori_"))
    .sort((a, b) => (a.name < b.name ? -1 : 1));

interface Call {
  summary: string;
  security?: unknown;
  parameters?: { name: string; in: string }[];
  requestBody?: { content: Record<string, { schema: Schema }> };
}

interface Schema {
  properties?: Record<string, unknown>;
  anyOf?: Schema[];
}

function callRows(document: { paths: Record<string, Record<string, Call>> }): string[][] {
  return Object.entries(document.paths).flatMap(([path, calls]) =>
    Object.entries(calls).map(([method, { summary, security, parameters = [], requestBody }]) => {
      const query = parameters.filter((one) => one.in === "query").map(({ name }) => `${name}=`);
      const schema = requestBody?.content["application/json"]?.schema;
      const fields = Object.keys((schema?.anyOf?.[0] ?? schema)?.properties ?? {}).join(", ");
      const body = fields === "" ? "" : ` \`{${fields}}\``;
      const call = `${method.toUpperCase()} ${path}${query.length > 0 ? `?${query.join("&")}` : ""}`;
      return [`${code(call)}${body}`, summary, security === undefined ? "" : "yes"];
    }),
  );
}

async function reference(): Promise<string> {
  const { api, metrics, close } = await idleDaemon();
  try {
    const document = (await (await api.inject("/openapi.json")).json()) as Parameters<typeof callRows>[0];
    const metricRows = metricsOf(metrics).map(({ name, type, labelNames, help }) => [
      code(name),
      type,
      labelNames.map(code).join(", "),
      help.replace(/\.$/, ""),
    ]);
    return `# Reference

This file is generated from the program: \`npm run reference\`.

- [Environment variables](#environment-variables)
- [Exit codes](#exit-codes)
- [Error codes](#error-codes)
- [Other troubles](#other-troubles)
- [HTTP API](#http-api)
- [Metrics](#metrics)

## Environment variables

sasori checks all variables at start and reports all problems at once. It refuses a name that looks like a
misspelling of one of them, and ignores other names that begin with \`SASORI_\`. It also refuses values in quotes or with a
comment, because not every reader of a file of variables takes these away.

${table(["variable", "default", "meaning", "example"], describeVariables().map(variableRow))}

The variables of the gateway's HAProxy configuration are in [gateway.md](gateway.md#variables).

## Exit codes

${table(["code", "meaning"], EXIT_CODES)}

## Error codes

A code is in every error message, in \`sasori status\`, in \`/api/v1/status\`, in the \`title\` of an HTTP problem, and in
the \`code\` label of \`sasori_errors_total\`.

${table(
  ["code", "meaning", "what to do"],
  Object.entries(ERRORS).map(([name, { meaning, remedy }]) => [code(name), meaning, remedy]),
)}

## Other troubles

\`sasori status\`, the page and \`/api/v1/status\` also report these. Each comes with its own remedy.

${table(
  ["code", "meaning"],
  Object.entries(TROUBLES).map(([name, meaning]) => [code(name), meaning]),
)}

## HTTP API

\`/openapi.json\` describes every call, its parameters and its answers. Errors are \`application/problem+json\` (RFC 9457);
\`title\` is an error code. "token" means: with \`SASORI_API_TOKEN_FILE\` set, the call needs \`Authorization: Bearer <token>\`.

${table(["call", "what it does", "token"], callRows(document))}

\`/\` is the page.

## Metrics

\`GET /metrics\` also has the usual metrics of a Node.js process.

${table(["metric", "type", "labels", "meaning"], metricRows)}
`;
  } finally {
    await close();
  }
}

test("docs/reference.md is what the program says (npm run reference writes it)", async () => {
  await expect(await reference()).toMatchFileSnapshot("../docs/reference.md");
});

/** What people read, beside the reference. */
const documents = [
  ...["README.md", "CONTRIBUTING.md", "SECURITY.md"],
  ...readdirSync(new URL("docs/", ROOT)).flatMap((name) =>
    name.endsWith(".md") && name !== "reference.md" ? [`docs/${name}`] : [],
  ),
];

describe.each(documents)("%s", (name) => {
  const text = read(name);

  test("names no metric, error code or variable that the program does not have", async () => {
    const { metrics, close } = await idleDaemon();
    const names = metricsOf(metrics).map((metric) => metric.name);
    await close();
    const parts = ["_bucket", "_count", "_sum"]; // Of a histogram.
    const known = (metric: string) =>
      [metric, ...parts.map((part) => metric.replace(new RegExp(`${part}$`), ""))].some((one) =>
        names.includes(one),
      );
    for (const [, metric = ""] of text.matchAll(/`(sasori_[a-z_]+)/g)) expect(metric).toSatisfy(known);
    for (const [, error = ""] of text.matchAll(/`((?:PUPPETDB|FILE|STATE|CONFIG)_[A-Z_]+)`/g))
      expect(Object.keys(ERRORS)).toContain(error);
    const variables = describeVariables().map((variable) => variable.name);
    for (const [variable] of text.matchAll(/\bSASORI_[A-Z_]+[A-Z]\b/g)) expect(variables).toContain(variable);
  });
});

describe("CONTRIBUTING.md", () => {
  test("gives the reason for every runtime dependency, and the lock file pins all that they bring", () => {
    const contributing = read("CONTRIBUTING.md");
    const { dependencies } = JSON.parse(read("package.json")) as { dependencies: Record<string, string> };
    for (const name of Object.keys(dependencies)) {
      // fastify's plugins go by their last names.
      const word = name.replace(/^@?fastify[/-](type-provider-)?/, "");
      expect(contributing).toMatch(new RegExp(`\\b${word}\\b`));
    }
    const { packages } = JSON.parse(read("package-lock.json")) as {
      packages: Record<
        string,
        { version?: string; integrity?: string; hasInstallScript?: boolean; dev?: boolean }
      >;
    };
    for (const [place, { integrity, hasInstallScript, dev }] of Object.entries(packages)) {
      if (place === "") continue;
      expect([place, integrity]).toEqual([place, expect.stringMatching(/^sha512-/)]);
      // No production package runs a script when it is installed.
      if (!dev) expect([place, hasInstallScript]).toEqual([place, undefined]);
    }
  });
});

describe("docs/gateway.md", () => {
  test("names every variable of haproxy.cfg and pools.cfg with its default, and no other", () => {
    const files = ["haproxy/haproxy.cfg", "haproxy/pools.cfg"];
    const config = files
      .map(read)
      .join("")
      .replace(/^ *#.*$/gm, "");
    const used = [
      ...config.matchAll(/\$\{(\w+)(?:-([^}]*)|\[\*\])?\}|(?:defined\(|presetenv )(\w+)/g),
      ...read("haproxy/heal.lua").matchAll(/getenv\("(\w+)"\)/g),
    ];
    const any = (text: string) => text.replace(/^(MASTER|master)\d+/, "$1<n>");
    const table = read("docs/gateway.md").split("## Variables\n")[1]?.split("## ")[0] ?? "";
    const words = (cell = "") => Array.from(cell.matchAll(/`([^`]+)`|none|required/g), ([, word]) => word);
    const rows = Array.from(table.matchAll(/^\| (`[^|]+) \| ([^|]+) \|/gm)).flatMap(([, names, defaults]) =>
      words(names).map((name, index) => [name, words(defaults)[index]] as const),
    );
    expect(unique(rows.map(([name = ""]) => name))).toEqual(
      unique(used.map(([, name, , asked]) => any(name ?? asked ?? ""))),
    );
    const fallbacks = used.flatMap(([, name, value]) =>
      value && value !== "none" ? [`${any(name ?? "")}=${any(value)}`] : [],
    );
    expect(rows.map(([name, value]) => `${name}=${value}`)).toEqual(
      expect.arrayContaining(unique(fallbacks)),
    );
  });
});
