// The page as a person meets it: a real Chromium, the daemon as users start it, a real HAProxy, and the stand-in for
// PuppetDB.

import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startPuppetdbStandIn } from "../demo/puppetdb.js";
import type { Move, Status, Trouble } from "../src/http/api-shapes.js";
import { explain } from "../src/page/headline.js";
import { addMoves, domainOf, emptyMoveLog, MINUTE_MS, plotOf } from "../src/page/state.js";
import { findChromium, launchChromium, NO_CHROMIUM, overflow, withPage } from "./support/browser.js";
import { Child, freePort } from "./support/child.js";
import { type Gateway, withGateway } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { type PuppetdbClient, standInClient } from "./support/puppetdb-server.js";
import { EVERY_SECOND, ON_DEMAND } from "./support/schedules.js";

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
        ...EVERY_SECOND,
        ...extra,
      };
      const start = async () => {
        daemon = new Child(process.execPath, [CLI, "serve"], { env });
        await daemon.untilReady(async () => (await fetch(`${url}/readyz`)).ok);
      };
      try {
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
      } finally {
        await daemon?.end(); // Before its HAProxy's folder is removed, which holds its files.
      }
    });
  } finally {
    await standIn.close();
  }
}

const headline = (page: Page) => page.getByRole("heading", { level: 1 });
/** Resolves when the headline says so. */
const says = (page: Page, text: string | RegExp) =>
  headline(page)
    .filter({ hasText: text })
    .waitFor({ timeout: patient(30 * SECOND) });
const status = (page: Page) => section(page, "Is everything in sync?");
const section = (page: Page, name: string) => page.getByRole("region", { name, exact: true });
/** The id, else the label, else the text of the element that has the keyboard. */
const focused = (page: Page) =>
  page.evaluate(
    "(({ id, ariaLabel, textContent }) => id || ariaLabel || textContent)(document.activeElement)",
  );
/** How many lines the first "--approve" among the troubles takes. */
const LINES_OF_OPTION = `(() => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
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
        await expect.poll(() => page.title()).toMatch(/^✓ Everything is in sync/);
        const masters = section(page, "Masters").getByRole("listitem");
        await masters.filter({ hasText: /master1.*up.*10 nodes.*33\.3%/ }).waitFor();
        await expect.poll(() => masters.count()).toBe(3);
        const haproxy = section(page, "HAProxy instances and the map file");
        await haproxy.getByText(/HAProxy \d+\.\d+/).waitFor();
        await expect.poll(() => haproxy.getByText("in sync").count()).toBe(2);
        await section(page, "Passes").getByRole("listitem").first().waitFor();

        await site.puppetdb.replaceFacts({ certname: NODE, producer: "master3" });
        const moves = section(page, "Moves");
        await moves
          .getByRole("listitem")
          .filter({ hasText: /node1\.example\.com.*master1 to master3/ })
          .waitFor();
        await moves.getByText("1 from master to master").waitFor();
        await masters.filter({ hasText: /master3.*11 nodes/ }).waitFor();
        await expect.poll(() => moves.locator("canvas").count()).toBe(1);
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
          await story.getByText(/because that master sent its latest report to PuppetDB/).waitFor();
          await expect
            .poll(() =>
              story
                .getByRole("listitem")
                .filter({ hasText: /master2/ })
                .count(),
            )
            .toBeGreaterThan(3);
          await story.getByText("sees its master up").waitFor();
          await story.getByText(/master1 to master2/).waitFor();
          await story.getByText(/\d\d:\d\d:\d\d \((\d+ s ago|just now)\)/).waitFor();

          await page.goto(`${site.url}/#node=${NODES[1]}`);
          await page.reload();
          await page
            .getByRole("article", { name: NODES[1] ?? "" })
            .getByText(/Goes to master2/)
            .waitFor();
          await page.getByRole("button", { name: "Close" }).click();
          await page.getByRole("article").waitFor({ state: "detached" });

          await page.goto(`${site.url}/#node=unknown.example.com`);
          const unknown = page.getByRole("article", { name: "unknown.example.com" });
          await unknown.getByText("404: no route").waitFor();
          expect(await unknown.locator("li[data-tone=good]").count()).toBe(0);
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
        await says(page, "HAProxy unreachable");
        await expect.poll(() => page.title()).toMatch(/^✗/);
        await status(page).getByText("If it is running, it serves the map that it has").waitFor();
        await status(page)
          .getByText(/Start that HAProxy/)
          .waitFor();
        await expect.poll(() => status(page).getByText("HAPROXY_UNREACHABLE").count()).toBe(1);
        await section(page, "HAProxy instances and the map file").getByText("HAPROXY_UNREACHABLE").waitFor();
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
        await page.locator("#notice [data-tone=good]").getByText("Pass done: nothing to change").waitFor();
        await site.gateway.haproxy.kill();
        await says(page, "HAProxy unreachable");
        await sync.click();
        const notice = page.locator("#notice [data-tone=bad]");
        await notice.getByText("Pass failed in part").waitFor();
        expect(await page.locator("#notice [data-tone=good]").count()).toBe(0);
        await notice.getByRole("button", { name: "Dismiss" }).click();
        await notice.waitFor({ state: "detached" });
        await expect.poll(() => focused(page)).toBe("Register"); // Its neighbour.
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
          .getByText(/still serves its own nodes/)
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

  test("tells that PuppetDB is down, and that HAProxy keeps its map", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        await site.puppetdb.stop();
        await says(page, /^PuppetDB unreachable since \d\d:\d\d$/);
        await status(page).getByText("Requests are served from the map of that time").waitFor();
        await expect.poll(() => status(page).getByText("PUPPETDB_UNREACHABLE").count()).toBe(1);
        await status(page)
          .getByText(/HAProxy keeps its map\.$/)
          .waitFor();
        expect(await masterOf(site, NODE)).toBe("master1");
        const failed = section(page, "Passes").getByRole("listitem").filter({ hasText: "failed" });
        await expect.poll(() => failed.count()).toBe(1);
        await site.puppetdb.start();
        await says(page, "Everything is in sync");
        // It came back empty. Only a full pass sees that.
        await page.getByRole("button", { name: "Read everything" }).click();
        await says(page, "30 changes wait for your approval");
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
          await says(page, "The state file cannot be used");
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
          await says(page, "20 changes wait for your approval");
          const held = page.getByRole("article", { name: "The plan that is held" });
          await held.getByText("20 of 20 shown").waitFor();
          for (const certname of NODES.slice(0, 20))
            await held.getByText(certname, { exact: true }).waitFor();
          const ofMaster3 = held.getByRole("button", { name: /master3\s*6 removed \(60.0% of its nodes\)/ });
          await ofMaster3.click();
          await held.getByText("6 of 6 shown").waitFor();
          await ofMaster3.click();
          await held.getByText("20 of 20 shown").waitFor();
          const [download] = await Promise.all([
            page.waitForEvent("download"),
            held.getByRole("link", { name: "Download all as text" }).click(),
          ]);
          expect(download.suggestedFilename()).toMatch(/^plan-[0-9a-f]{12}\.txt$/);
          const text = await readFile(await download.path(), "utf8");
          expect(text.match(/^node\d+\.example\.com\tmaster[123]\t-$/gm)).toHaveLength(20);
          const button = held.getByRole("button", { name: /Approve/ });
          await button.click();
          const dialog = page.getByRole("dialog", { name: "Approve 20 changes?" });
          await dialog.getByText(/This approves exactly these nodes/).waitFor();
          await dialog.getByText(/master3: 6 removed/).waitFor();
          await page.keyboard.press("Enter"); // Cancel has the focus.
          await dialog.waitFor({ state: "detached" });
          expect(await masterOf(site, NODE)).toBe("master1");
          await button.click();
          await dialog.getByRole("button", { name: "Approve 20" }).click();
          await says(page, "Everything is in sync");
          await page.getByText(/Pass done: 20 nodes changed/).waitFor();
          await expect.poll(() => focused(page)).toBe("search"); // The button is gone, and nothing is left where it was.
          expect((await site.gateway.ask(NODE)).status).toBe(404);
        }),
      ON_DEMAND,
    ));

  test("shows all the names of a held plan, and its command in whole words, however narrow it is", () =>
    withSite(
      (site) =>
        withPage(browser, async (page) => {
          await openedInSync(page, site);
          for (const certname of NODES.slice(0, 20)) await site.puppetdb.deactivateNode(certname);
          await page.getByRole("button", { name: "Sync now" }).click();
          await says(page, "20 changes wait for your approval");
          await page.getByText("20 of 20 shown").waitFor();
          for (let width = 320; width < 440; width += 10) {
            await page.setViewportSize({ width, height: 700 });
            expect({ width, lines: await page.evaluate(LINES_OF_OPTION) }).toEqual({ width, lines: 1 });
            expect(await overflow(page)).toBe(0);
          }
        }),
      ON_DEMAND,
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

  test("asks before it registers a name that PuppetDB does not know", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        const registrations = section(page, "Registrations");
        const typo = "nodel.example.com";
        await registrations.getByLabel("Node").fill(typo);
        await registrations.getByLabel("Master").selectOption("master3");
        await registrations.getByRole("button", { name: "Register" }).click();
        const dialog = page.getByRole("dialog", { name: "PuppetDB does not know this node" });
        await dialog.getByText(typo).waitFor();
        await page.keyboard.press("Enter"); // Cancel has the focus.
        await dialog.waitFor({ state: "detached" });
        expect(await registrations.getByLabel("Node").inputValue()).toBe(typo);
        expect((await site.gateway.ask(typo)).status).toBe(404);
        await registrations.getByRole("button", { name: "Register" }).click();
        await dialog.getByRole("button", { name: "Register anyway" }).click();
        await page.getByText(`${typo} now goes to master3.`).waitFor();
        expect(await masterOf(site, typo)).toBe("master3");
      }),
    ));

  test("finds a node whose producer has no server, and says that its requests get 404", () =>
    withSite((site) =>
      withPage(browser, async (page) => {
        await openedInSync(page, site);
        await page.goto(`${site.url}/#node=${NODE}`);
        await page.getByRole("article", { name: NODE }).waitFor();
        await site.puppetdb.replaceFacts({ certname: "lost.example.com", producer: "puppet9.example.com" });
        await says(page, "HAProxy has no server for the puppetserver of 1 node");
        const search = page.getByRole("searchbox");
        await search.fill("nowhere");
        await page.getByText("No node has that in its name.").waitFor();
        expect(await page.getByRole("article").count()).toBe(0); // The story of before is no answer.
        expect(page.url()).toBe(`${site.url}/`);
        await search.fill("lost");
        await page.getByText("1 found.").waitFor();
        await page.getByText("404: no route").waitFor();
        await page.keyboard.press("Enter");
        const story = page.getByRole("article", { name: "lost.example.com" });
        await story.getByText("404: no route").waitFor();
        await story.getByText("puppet9.example.com").waitFor();
        await expect.poll(() => story.getByText("no route", { exact: true }).count()).toBe(3);
        expect(await story.locator("li[data-tone=good]").count()).toBe(0);
        await search.fill("example");
        await page.getByText("More than 20 found.").waitFor();
      }),
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
            await dialog.getByRole("button", { name: "Continue" }).click();
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
          const look = () => page.evaluate("getComputedStyle(document.querySelector('main')).filter");
          await expect.poll(look).toContain("grayscale");
          await site.sasori.start();
          await says(page, "Everything is in sync");
          await expect.poll(look).toBe("none");
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
        await expect.poll(() => focused(page)).toBe("To the search for a node");
        await page.keyboard.press("Enter");
        await expect.poll(() => focused(page)).toBe("search");
        expect(await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")).toBe("solid");
        await page.keyboard.type(NODE);
        await page.keyboard.press("Enter");
        await page
          .getByRole("article", { name: NODE })
          .getByText(/Goes to master1/)
          .waitFor();
        await expect.poll(() => focused(page)).toBe("story-title");
        await page.keyboard.press("Tab");
        await expect.poll(() => focused(page)).toBe("Close");
        await page.keyboard.press("Tab");
        await page.keyboard.type("master2");
        await page.keyboard.press("Tab");
        await page.keyboard.type("Alice");
        await page.keyboard.press("Tab");
        await page.keyboard.type("ticket 4711");
        await page.keyboard.press("Tab");
        await expect.poll(() => focused(page)).toBe("Register");
        await page.keyboard.press("Enter");
        await page.getByText(`${NODE} now goes to master2.`).waitFor();
        // Drawing again does not take the focus away.
        await page
          .getByRole("article", { name: NODE })
          .getByText(/master1 to master2/)
          .waitFor();
        await page.getByText(/registered there by hand by Alice: “ticket 4711”/).waitFor();
        await section(page, "Moves").getByText("registered by hand by Alice: “ticket 4711”").waitFor();
        await site.puppetdb.replaceFacts({ certname: NODES[1] ?? "", producer: "master3" });
        await section(page, "Moves")
          .getByText(NODES[1] ?? "")
          .first()
          .waitFor();
        await expect.poll(() => focused(page)).toBe("Register");
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
        await form.getByRole("button", { name: "Let PuppetDB decide again" }).focus();
        await page.keyboard.press("Enter");
        await form.getByRole("button", { name: "Let PuppetDB decide again" }).waitFor({ state: "detached" });
        await expect.poll(() => focused(page)).toBe("Register");
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
        for (let control = 0; control < 3; control += 1) await page.keyboard.press("Tab");
        await page.evaluate(
          "let lost = 0; addEventListener('focusout', () => document.body.dataset.lost = ++lost)",
        );
        await page.keyboard.press("Enter");
        await section(page, "Registrations").getByRole("listitem").waitFor();
        await expect.poll(() => focused(page)).toBe("Register");
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
            await says(page, "HAProxy has no server for the puppetserver of 1 node");
            await page
              .getByRole("article", { name: long })
              .getByText(/Goes to master1/)
              .waitFor();
            await section(page, "Masters").getByText(hostile).waitFor();
            await status(page).getByText("<script>alert(1)<").waitFor();
            await section(page, "Moves").getByText(long).first().waitFor();
            expect(await page.locator("img:not([src='icon.svg']), script:not([src])").count()).toBe(0);
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

  test("are at most 100 kB on the wire, by far, and name no other host", async () => {
    const files = await readdir(BUILT);
    expect(files.sort()).toEqual(["icon.svg", "index.html", "page.css", "page.js"]);
    const contents = await Promise.all(files.map((file) => readFile(BUILT + file)));
    const sent = contents.reduce((sum, content) => sum + gzipSync(content, { level: 9 }).length, 0);
    expect(sent).toBeLessThan(60_000);
    const hosts = contents.join("").match(/https?:\/\/[^/"'`\s)]+/g) ?? [];
    expect(new Set(hosts)).toEqual(new Set(["http://www.w3.org"])); // The names of SVG and MathML.
  });
});

describe("the headline tells what clients see", () => {
  const now = Date.parse("2026-05-01T14:30:00.000Z");
  const since = "2026-05-01T14:17:20.000Z";
  const base = { ready: true, state: "failing", targets: [], troubles: [] } as unknown as Status;
  const told = (trouble: Partial<Trouble>, status: Partial<Status> = {}, domain = "") =>
    explain(
      { severity: "critical", remedy: "", where: "puppetdb", code: "", what: "", ...trouble },
      { ...base, ...status },
      domain,
      now,
    );

  test("while PuppetDB is away: since when, and from what they are served", () => {
    const what = `connect ECONNREFUSED (since ${since})`;
    const down = told({ code: "PUPPETDB_UNREACHABLE", what, since });
    expect(down.title).toMatch(/^PuppetDB unreachable since \d\d:17$/);
    expect(down).toMatchObject({ tone: "bad", cause: "connect ECONNREFUSED" });
    expect(down.detail).toContain("Requests are served from the map of that time");
    expect(told({ code: "PUPPETDB_UNREACHABLE", since }, { ready: false }).detail).toContain(
      "No map is being served",
    );
  });

  test("a master by the short name that lists have, and nothing twice", () => {
    const where = "puppet1.example.com";
    const what = `${where} is down: requests for its nodes go to another master`;
    expect(told({ severity: "warning", code: "down", where, what }, {}, ".example.com")).toMatchObject({
      tone: "warn",
      title: "puppet1 is down",
      detail: "requests for its nodes go to another master",
    });
  });

  test("the domain that lists leave out is one that all masters have", () => {
    expect(domainOf(["puppet1.a.example.com", "puppet2.a.example.com"])).toBe(".a.example.com");
    expect(domainOf(["puppet1.a.example.com", "puppet2.b.example.com"])).toBe(".example.com");
    expect(domainOf(["puppet1.example.com"])).toBe("");
    expect(domainOf(["master1", "master2"])).toBe("");
    expect(domainOf([])).toBe("");
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
