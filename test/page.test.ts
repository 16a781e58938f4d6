// The page as a person meets it: a real Chromium, the daemon as users start it, a real HAProxy, and the stand-in for
// PuppetDB.

import { mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startPuppetdbStandIn } from "../demo/puppetdb.js";
import type { Move } from "../src/http/api-shapes.js";
import { addMoves, emptyMoveLog, MINUTE_MS, plotOf } from "../src/page/state.js";
import { findChromium, launchChromium, NO_CHROMIUM, overflow, withPage } from "./support/browser.js";
import { Child, freePort } from "./support/child.js";
import { type Gateway, withGateway } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { type PuppetdbClient, standInClient } from "./support/puppetdb-server.js";

const CLI = fileURLToPath(new URL("../dist/src/cli.js", import.meta.url));
const BUILT = fileURLToPath(new URL("../dist/page/", import.meta.url));
const NODE = "node1.example.com";
const NODES = Array.from({ length: 30 }, (_, index) => `node${index + 1}.example.com`);
const SECOND = 1_000;
const DEADLINE_MS = patient(60 * SECOND);
const LOST = /Failed to load resource|net::ERR_/;
const UNAUTHORIZED = /status of 401/;

const chromium = findChromium();
let browser: Browser;
beforeAll(async () => {
  if (chromium !== undefined) browser = await launchChromium(chromium);
});
afterAll(() => browser?.close());

interface Site {
  url: string;
  gateway: Gateway;
  puppetdb: PuppetdbClient & { stop(): Promise<void>; start(): Promise<void> };
  sasori: { stop(): Promise<void>; start(): Promise<void>; signal(signal: NodeJS.Signals): void };
}

/** NODES are at master1, master2 and master3 by turns. */
async function withSite(
  use: (site: Site) => Promise<void>,
  extra: Record<string, string> = {},
): Promise<void> {
  const port = await freePort();
  let standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port });
  const client = standInClient(`http://127.0.0.1:${port}`);
  const bin = haproxyBinaries().at(-1)?.bin ?? "";
  let daemon: Child | undefined;
  try {
    const at = new Date(Date.now() - 60 * SECOND);
    await Promise.all(
      NODES.map((certname, index) =>
        client.replaceFacts({ certname, producer: `master${(index % 3) + 1}`, at }),
      ),
    );
    await withGateway({ bin }, async (gateway) => {
      const listen = `127.0.0.1:${await freePort()}`;
      const url = `http://${listen}`;
      const env = {
        PATH: process.env.PATH ?? "",
        SASORI_PUPPETDB_URL: client.url,
        SASORI_HAPROXY: gateway.haproxy.socketPath,
        SASORI_MAP_FILE: gateway.haproxy.mapPath,
        SASORI_LISTEN: listen,
        SASORI_SCHEDULE: "* * * * * *",
        ...extra,
      };
      const start = async () => {
        daemon = new Child(process.execPath, [CLI, "serve"], { env });
        await daemon.untilReady(async () => (await fetch(`${url}/readyz`)).ok);
      };
      await start();
      await use({
        url,
        gateway,
        puppetdb: {
          ...client,
          stop: () => standIn.close(),
          async start() {
            standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port });
          },
        },
        sasori: {
          start,
          stop: async () => daemon?.end(),
          signal: (signal) => process.kill(daemon?.pid ?? 0, signal),
        },
      });
    });
  } finally {
    await daemon?.end();
    await standIn.close();
  }
}

const headline = (page: Page) => page.getByRole("heading", { level: 1 });
/** Resolves when the headline says so. */
const says = (page: Page, text: string | RegExp) =>
  headline(page)
    .filter({ hasText: text })
    .waitFor({ timeout: patient(30 * SECOND) });
const section = (page: Page, name: string) => page.getByRole("region", { name, exact: true });
/** The id, else the label, else the text of the element that has the keyboard. */
const focused = (page: Page) =>
  page.evaluate(
    "(({ id, ariaLabel, textContent }) => id || ariaLabel || textContent)(document.activeElement)",
  );
/** On how many lines the first "--approve" of what is wrong stands. */
const LINES_OF_OPTION = `(() => {
  const texts = document.createTreeWalker(document.getElementById("troubles"), NodeFilter.SHOW_TEXT);
  while (!texts.nextNode().data.includes("--approve"));
  const at = texts.currentNode.data.indexOf("--approve");
  const range = document.createRange();
  range.setStart(texts.currentNode, at);
  range.setEnd(texts.currentNode, at + "--approve".length);
  return range.getClientRects().length;
})()`;
const masterOf = async ({ gateway }: Site, node: string) =>
  (await gateway.ask(node)).headers.get("x-served-by");

async function openedInSync(page: Page, { url }: Site): Promise<void> {
  await page.goto(url);
  await says(page, "Everything is in sync");
}

describe.skipIf(chromium === undefined)("the page", { timeout: DEADLINE_MS, meta: NO_CHROMIUM }, () => {
  test("says that everything is in sync, shows masters, HAProxy and passes, and a move as it happens", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        expect(await page.title()).toMatch(/^✓ Everything is in sync/);
        const masters = section(page, "Masters").getByRole("listitem");
        await masters.filter({ hasText: /master1.*up.*10 nodes.*33\.3%.*served/ }).waitFor();
        expect(await masters.count()).toBe(3);
        const haproxy = section(page, "HAProxys and the map file");
        await haproxy.getByText(/HAProxy \d+\.\d+/).waitFor();
        expect(await haproxy.getByText("in sync").count()).toBe(2);
        await section(page, "Passes").getByRole("listitem").first().waitFor();

        await site.puppetdb.replaceFacts({ certname: NODE, producer: "master3" });
        const moves = section(page, "Moves");
        await moves
          .getByRole("listitem")
          .filter({ hasText: /node1\.example\.com.*master1 to master3/ })
          .waitFor();
        await moves.getByText("1 from master to master").waitFor();
        await masters.filter({ hasText: /master3.*11 nodes/ }).waitFor();
        expect(await page.locator("#plot canvas").count()).toBe(1);
      }),
    ));

  test("tells a node's whole story, at an address of its own", () =>
    withSite((site) =>
      withPage(
        browser,
        async (page) => {
          await openedInSync(page, site);
          await site.puppetdb.storeReport({ certname: NODE, producer: "master2" });
          await page.getByRole("searchbox").fill("node1.ex");
          await page.getByRole("link", { name: NODE }).first().click();
          const story = page.getByRole("article", { name: NODE });
          await story.getByText(/Goes to master2, because that master sent its newest report/).waitFor();
          expect(
            await story
              .getByRole("listitem")
              .filter({ hasText: /master2/ })
              .count(),
          ).toBeGreaterThan(3);
          await story.getByText("sees its master up").waitFor();
          await story.getByText(/master1 to master2/).waitFor();
          await story.getByText(/, at \d\d:\d\d:\d\d \(\d+ s ago\)|, at .*just now/).waitFor();

          await page.goto(`${site.url}/#node=${NODES[1]}`);
          await page.reload();
          await page
            .getByRole("article", { name: NODES[1] ?? "" })
            .getByText(/Goes to master2/)
            .waitFor();
          await page.getByRole("button", { name: "Close" }).click();
          await page.getByRole("article").waitFor({ state: "detached" });

          await page.goto(`${site.url}/#node=unknown.example.com`);
          await page.getByText("It is not in the map").waitFor();
          await page.goto(`${site.url}/#node=${encodeURIComponent("a;<b>")}`);
          await page.getByRole("article").getByText("cannot be a map key").waitFor();
        },
        { allowed: /status of 400/ },
      ),
    ));

  test("is alarming while HAProxy is down, says what to do, and calms down by itself", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        await site.gateway.haproxy.kill();
        await says(page, "Something is broken");
        expect(await page.title()).toMatch(/^✗/);
        const troubles = section(page, "What is wrong");
        await troubles.getByText("HAPROXY_UNREACHABLE").waitFor();
        await troubles.getByText(/What to do: .*Start that HAProxy/).waitFor();
        await section(page, "HAProxys and the map file").getByText("not in sync").waitFor();
        await site.gateway.haproxy.restart();
        await says(page, "Everything is in sync");
      }),
    ));

  test("says in red that a pass it was asked for has failed somewhere, until the reader has seen it", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        const sync = page.getByRole("button", { name: "Sync now" });
        await sync.click();
        await page.locator("#notice p.good").getByText("Pass done: nothing to change").waitFor();
        await site.gateway.haproxy.kill();
        await says(page, "Something is broken");
        await sync.click();
        const notice = page.locator("#notice p.bad");
        await notice.getByText("Pass not wholly done, see above").waitFor();
        expect(await page.locator("#notice p.good").count()).toBe(0);
        await notice.getByRole("button", { name: "Dismiss" }).click();
        await notice.waitFor({ state: "detached" });
        expect(await focused(page)).toBe("Register"); // Its neighbour.
      }),
    ));

  test("shows a drained master as that, with what to do, and up again when it is ready", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        const server = (state: string) =>
          runtimeCommand(site.gateway.haproxy.socketPath, `set server puppet/master1 state ${state}`);
        await server("drain");
        const master = section(page, "Masters").getByRole("listitem").filter({ hasText: "master1" });
        await master.getByText("drained", { exact: true }).waitFor();
        await page
          .getByText(/still serves the nodes that the map names/)
          .first()
          .waitFor();
        await page
          .getByText(/sasori drain master1/)
          .first()
          .waitFor();
        expect(await masterOf(site, NODE)).toBe("master1");
        await server("ready");
        await says(page, "Everything is in sync");
        await master.getByText("up", { exact: true }).waitFor();
      }),
    ));

  test("tells that PuppetDB is down, and that nothing is lost", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        await site.puppetdb.stop();
        await says(page, "Something is broken");
        await section(page, "What is wrong").getByText("PUPPETDB_UNREACHABLE").waitFor();
        await page
          .getByText(/nothing is lost/)
          .first()
          .waitFor();
        expect(await masterOf(site, NODE)).toBe("master1");
        const failed = section(page, "Passes").getByRole("listitem").filter({ hasText: "failed" });
        expect(await failed.count()).toBe(1);
        await site.puppetdb.start();
        await says(page, "Everything is in sync");
        // It came back empty, which only a look at everything shows.
        await page.getByRole("button", { name: "Read everything" }).click();
        await page.getByRole("heading", { name: "30 nodes would be removed" }).waitFor();
      }),
    ));

  test("shows all of itself while a state file was set aside, and calms down when that is removed", () =>
    withSite((site) =>
      withPage(
        browser,
        async (page) => {
          await openedInSync(page, site);
          await site.sasori.stop();
          await writeFile(`${site.gateway.haproxy.mapPath}.state.json`, "{broken");
          await site.sasori.start();
          await says(page, "Something is broken");
          await page.getByText("it was set aside as").last().waitFor();
          await section(page, "Masters").getByText("master3").first().waitFor();
          const folder = path.dirname(site.gateway.haproxy.mapPath);
          for (const name of await readdir(folder))
            if (name.includes(".broken-")) await rm(path.join(folder, name));
          await says(page, "Everything is in sync");
        },
        { allowed: LOST },
      ),
    ));

  test("lets a held plan through by a button, after it has shown what that means", () =>
    withSite(
      (site) =>
        withPage(browser, async (page) => {
          await openedInSync(page, site);
          for (const certname of NODES.slice(0, 20)) await site.puppetdb.deactivateNode(certname);
          await page.getByRole("button", { name: "Sync now" }).click();
          await says(page, "One thing waits for you");
          const held = page.getByRole("article", { name: /\d+ nodes would be removed/ });
          await held.getByRole("heading", { name: "20 nodes would be removed" }).waitFor();
          await held.getByText(NODE, { exact: true }).waitFor();
          const button = held.getByRole("button", { name: /Approve/ });
          await button.click();
          const dialog = page.getByRole("dialog", { name: "Remove 20 nodes from the map?" });
          await dialog.getByText(NODE, { exact: true }).waitFor();
          await page.keyboard.press("Enter"); // Cancel has the focus.
          await dialog.waitFor({ state: "detached" });
          expect(await masterOf(site, NODE)).toBe("master1");
          await button.click();
          await dialog.getByRole("button", { name: "Remove 20" }).click();
          await says(page, "Everything is in sync");
          await page.getByText(/Pass done: 20 nodes changed/).waitFor();
          expect(await focused(page)).toBe("search"); // The button is gone, and nothing is left where it was.
          expect((await site.gateway.ask(NODE)).status).toBe(404);
        }),
      { SASORI_SCHEDULE: "0 0 1 1 *" },
    ));

  test("shows all the names of a held plan, and its command in whole words, however narrow it is", () =>
    withSite(
      (site) =>
        withPage(browser, async (page) => {
          await openedInSync(page, site);
          for (const certname of NODES.slice(0, 20)) await site.puppetdb.deactivateNode(certname);
          await page.getByRole("button", { name: "Sync now" }).click();
          await says(page, "One thing waits for you");
          await page.getByRole("button", { name: "Approve" }).waitFor();
          const hidden =
            "(({ scrollHeight, clientHeight }) => scrollHeight - clientHeight)(document.querySelector('.samples'))";
          for (let width = 320; width < 440; width += 10) {
            await page.setViewportSize({ width, height: 700 });
            expect({ width, hidden: await page.evaluate(hidden) }).toEqual({ width, hidden: 0 });
            expect({ width, lines: await page.evaluate(LINES_OF_OPTION) }).toEqual({ width, lines: 1 });
            expect(await overflow(page)).toBe(0);
          }
        }),
      { SASORI_SCHEDULE: "0 0 1 1 *" },
    ));

  test("registers a node with a master, and ends that", () =>
    withSite((site) =>
      withPage(
        browser,
        async (page) => {
          await openedInSync(page, site);
          const registrations = section(page, "Registrations");
          await registrations.getByLabel("Node").fill(NODE);
          await registrations.getByLabel("Master").selectOption("master3");
          await registrations.getByRole("button", { name: "Register" }).click();
          await page.getByText(`${NODE} now goes to master3.`).waitFor();
          expect(await masterOf(site, NODE)).toBe("master3");
          await registrations
            .getByRole("listitem")
            .filter({ hasText: /node1\.example\.com.*to master3/ })
            .waitFor();
          await registrations.getByRole("button", { name: `End the registration of ${NODE}` }).click();
          await page
            .getByText(/PuppetDB decides about node1.example.com again: it goes to master1/)
            .waitFor();
          expect(await masterOf(site, NODE)).toBe("master1");
          await registrations.getByText("None.").waitFor();

          await registrations.getByLabel("Node").fill("no such name");
          await registrations.getByRole("button", { name: "Register" }).click();
          await page.locator("#notice").getByText("cannot be a map key").waitFor();
        },
        { allowed: /status of 400/ },
      ),
    ));

  test("asks for the token, says when it is wrong, and keeps it for this session", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-token-"));
    const tokenFile = path.join(folder, "token");
    await writeFile(tokenFile, "s3cret\n");
    await withSite(
      (site) =>
        withPage(
          browser,
          async (page) => {
            await openedInSync(page, site);
            const sync = page.getByRole("button", { name: "Sync now" });
            const dialog = page.getByRole("dialog");
            await sync.click();
            await dialog.getByText("SASORI_API_TOKEN_FILE").waitFor();
            await page.keyboard.press("Escape");
            await dialog.waitFor({ state: "detached" });
            await sync.click();
            await dialog.getByLabel("Token").fill("wrong");
            await page.keyboard.press("Enter");
            await dialog.getByText("refused that token").waitFor();
            await dialog.getByLabel("Token").fill("s3cret");
            await dialog.getByRole("button", { name: "Go on" }).click();
            await page.getByText(/Pass done/).waitFor();
            await page.reload();
            await says(page, "Everything is in sync");
            await sync.click();
            await page.getByText(/Pass done/).waitFor();
            expect(await dialog.count()).toBe(0);
            expect(await page.evaluate("localStorage.length + document.cookie.length")).toBe(0);
          },
          { allowed: UNAUTHORIZED },
        ),
      { SASORI_API_TOKEN_FILE: tokenFile },
    ).finally(() => rm(folder, { recursive: true }));
  });

  test("looks stale without a connection, and is live again by itself when sasori is back", () =>
    withSite((site) =>
      withPage(
        browser,
        async (page) => {
          await openedInSync(page, site);
          await site.sasori.stop();
          await says(page, "The connection to sasori is lost");
          await page.getByText(/What you see is how things were at \d\d:\d\d:\d\d/).waitFor();
          await page.getByText("not connected").waitFor();
          const look = () => page.evaluate("getComputedStyle(document.querySelector('.sections')).filter");
          expect(await look()).toContain("grayscale");
          await site.sasori.start();
          await says(page, "Everything is in sync");
          expect(await look()).toBe("none");
          await site.puppetdb.replaceFacts({ certname: NODE, producer: "master3" });
          await section(page, "Moves").getByText(NODE).first().waitFor();
        },
        { allowed: LOST },
      ),
    ));

  test("says so too when sasori merely does not answer any more", () =>
    withSite((site) =>
      withPage(
        browser,
        async (page) => {
          await openedInSync(page, site);
          site.sasori.signal("SIGSTOP");
          await says(page, "The connection to sasori is lost");
          site.sasori.signal("SIGCONT");
          await says(page, "Everything is in sync");
        },
        { allowed: LOST },
      ),
    ));

  test("can be used with the keyboard alone", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        await page.keyboard.press("Tab");
        expect(await focused(page)).toBe("To the search for a node");
        await page.keyboard.press("Enter");
        expect(await focused(page)).toBe("search");
        expect(await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")).toBe("solid");
        await page.keyboard.type(NODE);
        await page.keyboard.press("Enter");
        await page
          .getByRole("article", { name: NODE })
          .getByText(/Goes to master1/)
          .waitFor();
        await expect.poll(() => focused(page)).toBe("story-title");
        await page.keyboard.press("Tab");
        expect(await focused(page)).toBe("Close");
        await page.keyboard.press("Tab");
        await page.keyboard.type("master2");
        await page.keyboard.press("Tab");
        expect(await focused(page)).toBe("Register");
        await page.keyboard.press("Enter");
        await page.getByText(`${NODE} now goes to master2.`).waitFor();
        // Nothing that is rendered anew takes the focus away.
        await page
          .getByRole("article", { name: NODE })
          .getByText(/master1 to master2/)
          .waitFor();
        await site.puppetdb.replaceFacts({ certname: NODES[1] ?? "", producer: "master3" });
        await section(page, "Moves")
          .getByText(NODES[1] ?? "")
          .first()
          .waitFor();
        expect(await focused(page)).toBe("Register");
      }),
    ));

  test("hands the keyboard on when the row that had it ends", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        const [first = "", second = ""] = NODES;
        for (const certname of [first, second]) {
          const body = JSON.stringify({ master: "master3" });
          const headers = { "content-type": "application/json" };
          await fetch(`${site.url}/api/v1/nodes/${certname}`, { method: "PUT", headers, body });
        }
        await openedInSync(page, site);
        const end = (certname: string) => `End the registration of ${certname}`;
        await page.getByRole("button", { name: end(first) }).focus();
        await page.keyboard.press("Enter");
        await expect.poll(() => focused(page)).toBe(end(second));
        await page.keyboard.press("Enter");
        await expect.poll(() => focused(page)).toBe("new-node");

        await page.goto(`${site.url}/#node=${second}`);
        const form = page.getByRole("article", { name: second });
        await form.getByLabel("Master").selectOption("master1");
        await form.getByRole("button", { name: "Register" }).click();
        await form.getByRole("button", { name: "Leave it" }).focus();
        await page.keyboard.press("Enter");
        await form.getByRole("button", { name: "Leave it" }).waitFor({ state: "detached" });
        expect(await focused(page)).toBe("Register");
      }),
    ));

  test("keeps the keyboard where it is when the first registration appears", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        await page.locator("#new-node").focus();
        await page.keyboard.type(NODE);
        await page.keyboard.press("Tab");
        await page.keyboard.type("master3");
        await page.keyboard.press("Tab");
        await page.evaluate(
          "let lost = 0; addEventListener('focusout', () => document.body.dataset.lost = ++lost)",
        );
        await page.keyboard.press("Enter");
        await section(page, "Registrations").getByRole("listitem").waitFor();
        expect(await focused(page)).toBe("Register");
        expect(await page.evaluate("document.body.dataset.lost")).toBeUndefined();
      }),
    ));

  test.each([{ colorScheme: "light" }, { colorScheme: "dark" }] as const)(
    "shows hostile names as text and fits 320 pixels, $colorScheme",
    ({ colorScheme }) =>
      withSite((site) =>
        withPage(
          browser,
          async (page) => {
            const hostile = `<img src=x onerror="document.title='owned'">${"x".repeat(80)}`;
            await site.puppetdb.replaceFacts({ certname: NODE, producer: hostile });
            await site.puppetdb.replaceFacts({ certname: "<script>alert(1)<", producer: "master1" });
            const long = `${"very-long-name-".repeat(15)}.example.com`;
            await site.puppetdb.replaceFacts({ certname: long, producer: "master1" });
            await page.goto(`${site.url}/#node=${long}`);
            await says(page, "2 things wait for you");
            await page
              .getByRole("article", { name: long })
              .getByText(/Goes to master1/)
              .waitFor();
            await section(page, "Masters").getByText(hostile).waitFor();
            await section(page, "What is wrong").getByText("<script>alert(1)<").waitFor();
            await section(page, "Moves").getByText(long).first().waitFor();
            expect(await page.locator("img, script:not([src])").count()).toBe(0);
            expect(await page.title()).not.toBe("owned");
            expect(await overflow(page)).toBe(0);
          },
          { viewport: { width: 320, height: 640 }, colorScheme },
        ),
      ),
  );
});

describe("the page's files", () => {
  test("go out with strict headers, packed, and only once", () =>
    withSite(async ({ url }) => {
      const page = await fetch(`${url}/`);
      const policy = page.headers.get("content-security-policy") ?? "";
      expect(policy).toContain("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'");
      expect(policy).toContain("frame-ancestors 'none'; base-uri 'none'; form-action 'none'");
      expect(policy).not.toContain("unsafe");
      expect(page.headers.get("x-content-type-options")).toBe("nosniff");
      expect(page.headers.get("referrer-policy")).toBe("no-referrer");
      for (const [route, type] of [
        ["/", "text/html"],
        ["/page.js", "text/javascript"],
        ["/page.css", "text/css"],
        ["/icon.svg", "image/svg+xml"],
      ] as const) {
        const first = await fetch(url + route);
        expect(first.headers.get("content-type")).toContain(type);
        expect(first.headers.get("content-encoding")).toBe("gzip");
        const plain = await fetch(url + route, { headers: { "accept-encoding": "identity" } });
        expect(plain.headers.get("content-encoding")).toBeNull();
        expect(await plain.text()).toBe(await first.text());
        const etag = first.headers.get("etag") ?? "";
        expect((await fetch(url + route, { headers: { "if-none-match": `W/${etag}` } })).status).toBe(304);
      }
      expect((await fetch(`${url}/page.js/../../package.json`)).status).toBe(404);
      expect((await fetch(url, { method: "POST" })).status).toBe(405);
    }));

  test("are less than 100 kB together and name no other host", async () => {
    const files = await readdir(BUILT);
    const sizes = await Promise.all(files.map(async (file) => (await stat(BUILT + file)).size));
    expect(files.sort()).toEqual(["icon.svg", "index.html", "page.css", "page.js"]);
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBeLessThan(100_000);
  });
});

test("the page's memory stays small whatever moves: minutes are counted, the newest moves kept", () => {
  const now = 1_800_000_000_000;
  let log = emptyMoveLog(0);
  for (let pass = 0; pass < 20; pass += 1) {
    const at = new Date(now - (20 - pass) * 5 * MINUTE_MS).toISOString();
    const moves = Array.from(
      { length: 10_000 },
      (_, index): Move => ({
        id: pass * 10_000 + index,
        at,
        certname: `node${index}`,
        from: index % 2 === 0 ? "master1" : null,
        to: "master2",
        source: "facts",
      }),
    );
    log = addMoves(log, moves, now);
    expect(addMoves(log, moves, now)).toBe(log);
  }
  expect(log.recent.map(({ id }) => id).slice(0, 2)).toEqual([199_999, 199_998]);
  expect(log.recent).toHaveLength(100);
  expect(log.minutes.size).toBeLessThanOrEqual(61);
  const { at, all, moved } = plotOf(log, now);
  expect(at).toHaveLength(60);
  expect([Math.max(...all), Math.max(...moved)]).toEqual([10_000, 5_000]);
});
