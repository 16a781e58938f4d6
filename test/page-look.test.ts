// How the page looks with the fleets that people have: names of 60 characters, 12 and 40 masters, 100,000 nodes, from a
// phone to a wide screen, light and dark, and in trouble. Every view is kept as a screenshot, in the folder that
// PAGE_SCREENSHOTS names; those of docs/ are made by `PAGE_SCREENSHOTS=docs npx vitest run test/page-look.test.ts`.

import { mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import axe from "axe-core";
import type { Browser, BrowserContextOptions, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { findChromium, launchChromium, overflow, withPage } from "./support/browser.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { type FleetSite, withFleetSite } from "./support/page-site.js";
import { patient } from "./support/patience.js";
import { startPostgres } from "./support/postgres-server.js";
import { ON_DEMAND } from "./support/schedules.js";

const FOLDER = process.env.PAGE_SCREENSHOTS ?? path.join(tmpdir(), "sasori-page");
/** The pictures of the documentation. */
const DOCS = ["page", "page-dark", "page-fqdn", "page-held", "page-puppetdb-down"];
const LOST = /Failed to load resource|net::ERR_/;
const DEADLINE_MS = patient(120_000);

const chromium = findChromium();
let browser: Browser;
beforeAll(async () => {
  mkdirSync(FOLDER, { recursive: true });
  if (chromium !== undefined) browser = await launchChromium(chromium);
});
afterAll(() => browser?.close());

const two = (index: number) => String(index).padStart(2, "0");
/** As sites name them: 60 characters. */
const longMaster = (index: number) =>
  `puppetserver-${two(index + 1)}.eu-central-1.production.infrastructure.corp.example`;
const longNode = (index: number) =>
  `${["web", "db", "app", "cache", "build"][index % 5]}-${String(index).padStart(6, "0")}.frontend.eu-central-1.production.corp.example.com`;

/** Masters of different sizes: the first has the most. */
function* fleet(count: number, masters: readonly string[], nameOf: (index: number) => string) {
  const weights = masters.map((_, index) => 1 / (index + 2));
  const all = weights.reduce((sum, weight) => sum + weight, 0);
  let index = 0;
  for (const [at, master] of masters.entries()) {
    const end = at === masters.length - 1 ? count : index + Math.round((count * (weights[at] ?? 0)) / all);
    for (; index < end; index += 1) yield [nameOf(index), master] as const;
  }
}

const says = (page: Page, text: string | RegExp) =>
  page
    .getByRole("heading", { level: 1 })
    .filter({ hasText: text })
    .waitFor({ timeout: patient(30_000) });

/** Names that are squeezed: short ones that take more than four lines. */
const SQUEEZED = `[...document.querySelectorAll("bdi")].filter((name) => {
  const range = document.createRange();
  range.selectNodeContents(name); // A name in a grid is one box, but its text has several lines.
  const text = name.textContent, lines = new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size;
  return text.length > 8 && text.length < 80 && name.offsetParent !== null && lines > 4;
}).map(({ textContent }) => textContent)`;

/** Elements that are wider than the window and do not scroll. */
const WIDE = `[...document.querySelectorAll("body *")]
  .filter((element) => {
    const { left, width } = element.getBoundingClientRect();
    const inside = getComputedStyle(element).overflowX === "visible" ? element.scrollWidth : width;
    return left + Math.max(width, inside) > document.documentElement.clientWidth + 1;
  })
  .map((element) => element.outerHTML.slice(0, 120))`;

/** Checks that everything fits and that axe finds nothing, and keeps a screenshot. */
async function look(page: Page, name: string): Promise<void> {
  await page.waitForTimeout(300); // The plot is drawn behind the rest.
  expect({ name, overflow: await overflow(page), wide: await page.evaluate(WIDE) }).toEqual({
    name,
    overflow: 0,
    wide: [],
  });
  const below = await page.evaluate(
    "document.documentElement.scrollHeight - Math.max(innerHeight, document.getElementById('page').offsetHeight)",
  );
  expect({ name, below }).toEqual({ name, below: 0 });
  expect({ name, squeezed: await page.evaluate(SQUEEZED) }).toEqual({ name, squeezed: [] });
  await page.evaluate(axe.source);
  const found = await page.evaluate<{
    violations: { id: string; nodes: { html: string; failureSummary: string }[] }[];
  }>("axe.run(document, { preload: false })");
  const violations = found.violations.map(({ id, nodes }) => ({
    id,
    at: nodes.map((node) => node.html + node.failureSummary),
  }));
  expect({ name, violations }).toEqual({ name, violations: [] });
  if (FOLDER !== "docs" || DOCS.includes(name))
    await page.screenshot({ path: path.join(FOLDER, `${name}.png`), fullPage: true });
}

const wide = (options: BrowserContextOptions = {}) => ({
  viewport: { width: 1440, height: 900 },
  ...options,
});
const WIDTHS = [320, 768, 1024, 1440];

async function someMoves({ puppetdb, url }: FleetSite, nodes: readonly string[], masters: readonly string[]) {
  for (const [index, certname] of nodes.entries())
    await puppetdb.storeReport({ certname, producer: masters[(index + 1) % masters.length] ?? "" });
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ master: masters[1] });
  await fetch(`${url}/api/v1/nodes/${nodes[0]}`, { method: "PUT", headers, body });
}

describe.skipIf(chromium === undefined)("the page looks right", { timeout: DEADLINE_MS }, () => {
  test("with three masters, in sync, light and dark; a node's story; PuppetDB down; not connected", () => {
    const masters = ["puppet1.example.com", "puppet2.example.com", "puppet3.example.com"];
    const nameOf = (index: number) => `web${index}.example.com`;
    return withFleetSite({ masters, nodes: fleet(1_200, masters, nameOf), haproxys: 2 }, async (site) => {
      await someMoves(
        site,
        Array.from({ length: 14 }, (_, index) => nameOf(index * 80)),
        masters,
      );
      for (const colorScheme of ["light", "dark"] as const)
        await withPage(
          browser,
          async (page) => {
            await page.goto(site.url);
            await says(page, "Everything is in sync");
            await page.getByRole("button", { name: `End the registration of ${nameOf(0)}` }).waitFor();
            await look(page, colorScheme === "light" ? "page" : "page-dark");
            await page.goto(`${site.url}/#node=${nameOf(80)}`);
            await page.getByText(/Goes to/).waitFor();
            await look(page, `page-story-${colorScheme}`);
          },
          wide({ colorScheme }),
        );
      await withPage(
        browser,
        async (page) => {
          await page.goto(site.url);
          await says(page, "Everything is in sync");
          await site.stopPuppetdb();
          await says(page, /^PuppetDB unreachable since \d\d:\d\d$/);
          await look(page, "page-puppetdb-down");
          await page.setViewportSize({ width: 320, height: 700 });
          await look(page, "page-puppetdb-down-320");
          await page.setViewportSize({ width: 1440, height: 900 });
          await site.haproxys[1]?.kill();
          await page.getByText("HAPROXY_UNREACHABLE").first().waitFor();
          await look(page, "page-two-troubles");
          await site.stopSasori();
          await says(page, "The connection to sasori is lost");
          await look(page, "page-not-connected");
        },
        { ...wide(), allowed: LOST },
      );
    });
  });

  test("with replicas that share a database: each with its state, and which of them is silent", async () => {
    const masters = [longMaster(0), longMaster(1)];
    const postgres = await startPostgres("sasori");
    try {
      await postgres.sql("postgres", "CREATE DATABASE sasori");
      const env = {
        SASORI_STATE_URL: `postgres://sasori@127.0.0.1:${postgres.port}/sasori`,
        SASORI_STATE_PASSWORD_FILE: postgres.passwordFile,
        SASORI_REPLICA: "gateway-01.eu-central-1.production.infrastructure.corp.example:9180",
      };
      await withFleetSite({ masters, nodes: fleet(40, masters, longNode), haproxys: 1, env }, (site) =>
        withPage(
          browser,
          async (page) => {
            await page.goto(site.url);
            await says(page, "Everything is in sync");
            const replicas = page.getByRole("region", { name: "Replicas" });
            await replicas.getByText("this one").waitFor();
            await replicas.getByText("in sync", { exact: true }).waitFor();
            // What a replica says is in the database only after some seconds.
            const told = () => postgres.sql("sasori", "SELECT count(*) FROM sasori_replicas");
            await expect.poll(told).toBe("1");
            const lost = "gateway-02.eu-central-1.production.infrastructure.corp.example:9180";
            await postgres.sql(
              "sasori",
              `INSERT INTO sasori_replicas SELECT '${lost}', now() - interval '1 hour', word FROM sasori_replicas`,
            );
            await replicas.getByText(/^last heard of 60 min/).waitFor();
            await says(page, "A replica is silent");
            for (const width of WIDTHS) {
              await page.setViewportSize({ width, height: 900 });
              await look(page, `page-replicas-${width}`);
            }
          },
          wide(),
        ),
      );
    } finally {
      await postgres.stop();
    }
  });

  test("with 12 masters and 100,000 nodes of 60 characters, from 320 to 1440 pixels", () => {
    const masters = Array.from({ length: 12 }, (_, index) => longMaster(index));
    const nodes = fleet(100_000, masters, longNode);
    return withFleetSite({ masters, nodes, haproxys: 2 }, async (site) => {
      await someMoves(
        site,
        Array.from({ length: 10 }, (_, index) => longNode(index * 7_919)),
        masters,
      );
      await withPage(
        browser,
        async (page) => {
          await page.goto(site.url);
          await says(page, "Everything is in sync");
          await page.getByRole("button", { name: `End the registration of ${longNode(0)}` }).waitFor();
          for (const width of WIDTHS) {
            await page.setViewportSize({ width, height: 900 });
            await look(page, width === 1440 ? "page-fqdn" : `page-fqdn-${width}`);
          }
          await page.goto(`${site.url}/#node=${longNode(7_919)}`);
          await page.getByText(/Goes to/).waitFor();
          for (const width of [320, 1440]) {
            await page.setViewportSize({ width, height: 900 });
            await look(page, `page-fqdn-story-${width}`);
          }
        },
        wide(),
      );
    });
  });

  test("with 40 masters, some of them down, drained, or without a server; nodes without a route", () => {
    const masters = Array.from({ length: 40 }, (_, index) => longMaster(index));
    const nodes = [...fleet(8_000, masters, longNode)];
    const lost = Array.from(
      { length: 60 },
      (_, index) => [`lost-${index}.example.com`, "puppet9.dmz.example.com"] as const,
    );
    return withFleetSite({ masters, nodes: [...nodes, ...lost], haproxys: 1 }, async (site) => {
      const socket = site.haproxys[0]?.socketPath ?? "";
      await runtimeCommand(socket, `set server puppet/${masters[20]} state maint`);
      await runtimeCommand(socket, `set server puppet/${masters[30]} state drain`);
      await withPage(
        browser,
        async (page) => {
          await page.goto(site.url);
          await page.getByText("maint").first().waitFor();
          await page.getByText("drained").first().waitFor();
          await look(page, "page-40-masters");
          await page.getByRole("button", { name: "Show all 40" }).click();
          await look(page, "page-40-masters-all");
          await page.setViewportSize({ width: 320, height: 900 });
          await look(page, "page-40-masters-320");
          await page.setViewportSize({ width: 1440, height: 900 });
          await page.getByRole("searchbox").fill("lost-1");
          await page.getByText("404: no route").first().waitFor();
          await look(page, "page-search");
          await page.getByRole("link", { name: "lost-1.example.com" }).click();
          await page.getByRole("article").getByText("404: no route").waitFor();
          await look(page, "page-no-route");
        },
        wide(),
      );
    });
  });

  test("with pools: how many of each pool's servers are up, and which", () => {
    const pool = (site: string, count: number) =>
      Array.from({ length: count }, (_, index) => longMaster(index).replace("eu-central-1", site));
    const masters = { "puppet-fra": pool("fra", 3), "puppet-lon": pool("lon", 4) };
    const nodes = fleet(3_000, Object.values(masters).flat(), longNode);
    const env = { SASORI_ROUTE_TO: "backends", SASORI_BACKEND: "puppet-[a-z]+" };
    return withFleetSite({ masters, nodes, haproxys: 2, env }, async (site) => {
      const drained = masters["puppet-lon"][1] ?? "";
      for (const { socketPath } of site.haproxys) {
        await runtimeCommand(socketPath, `set server puppet-lon/${masters["puppet-lon"][0]} state maint`);
        await runtimeCommand(socketPath, `set server puppet-lon/${drained} state drain`);
      }
      await runtimeCommand(
        site.haproxys[0]?.socketPath ?? "",
        `set server puppet-lon/${drained} state ready`,
      );
      await withPage(
        browser,
        async (page) => {
          await page.goto(site.url);
          await says(page, "Everything is in sync");
          const lon = page.getByRole("listitem").filter({ hasText: "puppet-lon" });
          await page.getByText("3 of 3 servers up", { exact: true }).waitFor();
          await lon.getByText("2 of 4 servers up", { exact: true }).waitFor();
          await lon.getByText("4 servers", { exact: true }).click();
          await lon.getByText("drained in 1 of 2 HAProxy instances", { exact: true }).waitFor();
          for (const width of WIDTHS) {
            await page.setViewportSize({ width, height: 900 });
            await look(page, `page-pools-${width}`);
          }
        },
        wide(),
      );
    });
  });

  test("with a held plan of 5,000 nodes", () => {
    const masters = Array.from({ length: 12 }, (_, index) => longMaster(index));
    const nodes = [...fleet(20_000, masters, longNode)];
    return withFleetSite({ masters, nodes, haproxys: 1, env: ON_DEMAND }, async (site) => {
      const gone = nodes.filter((_, index) => index % 4 === 0);
      for (const [certname] of gone) site.storage.submit("deactivate node", 3, { certname });
      await withPage(
        browser,
        async (page) => {
          await page.goto(site.url);
          await says(page, "Everything is in sync");
          await page.getByRole("button", { name: "Read everything" }).click();
          await says(page, "5,000 changes wait for your approval");
          await page.getByText("200 of 5,000 shown").waitFor();
          await page.getByRole("button", { name: "Dismiss" }).click();
          for (const width of [320, 1024, 1440]) {
            await page.setViewportSize({ width, height: 900 });
            await look(page, width === 1440 ? "page-held" : `page-held-${width}`);
          }
          await page.getByRole("button", { name: "Approve 5,000" }).click();
          await page.getByRole("dialog").waitFor();
          await look(page, "page-held-question");
        },
        wide(),
      );
    });
  });
});
