/**
 * A real Chromium without a screen, for tests of the page: the one that `setup/parts.sh test` has fetched, or the one
 * that CHROMIUM_BIN names.
 */
import { existsSync } from "node:fs";
import path from "node:path";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { pathOf } from "./parts.js";
import { patient } from "./patience.js";

const ARGUMENTS = [
  "--no-sandbox", // Root may not use it, and in a container nobody may; it only ever sees our own page.
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** Chromium's program. Undefined if there is none and none can be fetched; with CI=true that is an error. */
export function findChromium(): string | undefined {
  try {
    return pathOf("chromium");
  } catch (error) {
    if (process.env.CI === "true") throw error;
    return undefined;
  }
}

/** Why tests are skipped then. */
export const NO_CHROMIUM = { lacks: "there is no Chromium here: name one by CHROMIUM_BIN" };

/** Starts it with an empty profile. */
export function launchChromium(executablePath: string): Promise<Browser> {
  // The one of parts.sh brings its fonts along, and finds them only when told where its root is.
  const root = path.resolve(path.dirname(executablePath), "../../..");
  const fonts = existsSync(path.join(root, "ready")) ? { FONTCONFIG_SYSROOT: root } : {};
  return chromium.launch({
    executablePath,
    args: ARGUMENTS,
    env: { ...process.env, ...fonts } as Environment,
  });
}

type Environment = Record<string, string>;

/**
 * Gives `use` a page in a profile of its own, as wide as `options.viewport` says. Rejects when the browser had anything
 * to complain about, such as an error in the console or a violation of the Content-Security-Policy, that `allowed` does
 * not match: Chromium reports every answer of 4xx and every lost connection as an error.
 */
export async function withPage<T>(
  browser: Browser,
  use: (page: Page) => Promise<T>,
  { allowed, ...options }: BrowserContextOptions & { allowed?: RegExp } = {},
): Promise<T> {
  const context = await browser.newContext(options);
  const complaints: string[] = [];
  try {
    const page = await context.newPage();
    page.setDefaultTimeout(patient(15_000));
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) complaints.push(message.text());
    });
    const result = await use(page);
    const unexpected = complaints.filter((text) => allowed?.test(text) !== true);
    if (unexpected.length > 0) throw new Error(`the browser complains:\n${unexpected.join("\n")}`);
    return result;
  } finally {
    await context.close();
  }
}

/** By how many pixels the page is wider than the window: 0 when nothing has to be scrolled sideways. */
export const overflow = (page: Page): Promise<number> =>
  page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
