// deploy/prometheus and deploy/grafana fit the real programs: promtool checks and tests the alerts, and sasori or HAProxy has
// every metric that they name.

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";
import { readConfig } from "../src/config.js";
import { EventStream } from "../src/http/event-stream.js";
import { Metrics } from "../src/http/metrics.js";
import { NodeList } from "../src/http/node-list.js";
import { LoopDelay } from "../src/loop-delay.js";
import { assemble, Sync } from "../src/sync.js";
import { withGateway } from "./support/gateway.js";
import { haproxyBinaries, pathOf } from "./support/parts.js";

const DEPLOY = fileURLToPath(new URL("../deploy/", import.meta.url));
const RULES = readFileSync(join(DEPLOY, "prometheus/sasori.rules.yml"), "utf8");
const DASHBOARD = JSON.parse(readFileSync(join(DEPLOY, "grafana/sasori.json"), "utf8")) as {
  panels: { title: string; gridPos: Record<"x" | "y" | "w" | "h", number>; targets?: { expr: string }[] }[];
};
const queries = DASHBOARD.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr));

/** What promtool says; throws with it when it is not content. */
function promtool(...args: string[]): string {
  return execFileSync(pathOf("promtool"), args, {
    encoding: "utf8",
    cwd: join(DEPLOY, "prometheus"),
    stdio: "pipe",
  });
}

/** Names of metrics in PromQL, without what a histogram appends. */
function metricsIn(promql: string): string[] {
  const names = promql.match(/\b(?:sasori|haproxy|process|nodejs)_[a-z0-9_]+/g) ?? [];
  return [...new Set(names.map((name) => name.replace(/_(bucket|sum|count)$/, "")))];
}

/** Names of metrics in the text that Prometheus scrapes. */
const metricsOf = (text: string) => [...text.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name);

describe("the alerts", () => {
  test("are understood by Prometheus", () => {
    expect(promtool("check", "rules", "sasori.rules.yml")).toContain("SUCCESS");
    expect(promtool("check", "config", "--syntax-only", "scrape.example.yml")).toContain("SUCCESS");
  });

  test("fire when they should, and not before", () => {
    expect(promtool("test", "rules", "sasori.rules.test.yml")).toContain("SUCCESS");
    const tried = readFileSync(join(DEPLOY, "prometheus/sasori.rules.test.yml"), "utf8");
    const untried = [...RULES.matchAll(/alert: (\w+)/g)].filter(([, name = ""]) => !tried.includes(name));
    expect(untried).toEqual([]);
  });
});

describe("the dashboard", () => {
  test("asks only what Prometheus understands", () => {
    const dir = mkdtempSync(join(tmpdir(), "sasori-promtool-"));
    const rules = queries.map((expr, index) => ({
      record: `panel${index}`,
      expr: expr.replaceAll("$__rate_interval", "5m"),
    }));
    // JSON is YAML.
    writeFileSync(join(dir, "panels.yml"), JSON.stringify({ groups: [{ name: "panels", rules }] }));
    expect(promtool("check", "rules", join(dir, "panels.yml"))).toContain(`${queries.length} rules found`);
    rmSync(dir, { recursive: true });
  });

  test("has panels that do not overlap", () => {
    const cells = DASHBOARD.panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, cell) => `${x + (cell % w)},${y + Math.floor(cell / w)}`),
    );
    expect(new Set(cells).size).toBe(cells.length);
  });
});

describe("every metric exists", () => {
  const all = [...queries, RULES].flatMap(metricsIn);
  let ours: (string | undefined)[];
  beforeAll(async () => {
    const parts = assemble(
      readConfig({
        SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
        SASORI_HAPROXY: "none",
        SASORI_MAP_FILE: join(tmpdir(), "nodes.map"),
      }),
    );
    const sync = new Sync(parts);
    const nodes = new NodeList(sync.fleet.map);
    const delay = new LoopDelay();
    const metrics = new Metrics({
      sync,
      puppetdb: parts.puppetdb,
      nodes,
      events: new EventStream(),
      delay,
      version: "1",
    });
    delay.stop();
    ours = metricsOf(await metrics.registry.metrics());
  });

  test("in sasori", () => {
    expect(all.filter((name) => !name.startsWith("haproxy_") && !ours.includes(name))).toEqual([]);
  });

  test.each(haproxyBinaries())("in HAProxy $version", ({ bin }) =>
    withGateway({ bin }, async ({ statsUrl }) => {
      const authorization = `Basic ${btoa("admin:secret")}`;
      const answer = await fetch(`${statsUrl}/metrics`, { headers: { authorization } });
      const theirs = metricsOf(await answer.text());
      expect(all.filter((name) => name.startsWith("haproxy_") && !theirs.includes(name))).toEqual([]);
    }),
  );
});
