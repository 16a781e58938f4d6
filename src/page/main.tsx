// Brings state, network and screen together. Rendering is a function of the state. It happens a few times a second at
// most, and never in a hidden tab.

import { render } from "preact";
import "./base.css";
import { actionsOn } from "./actions.js";
import { App } from "./app.js";
import { startFeed } from "./feed.js";
import { keepFocus } from "./focus.js";
import { headlineOf } from "./headline.js";
import { PageProvider } from "./page.js";
import { domainOf, initialState, mastersOf } from "./state.js";

/** A pass may bring thousands of events. Drawing a few times a second is enough. */
const RENDER_MS = 200;
/** Ages such as "3 s ago" are drawn again this often. */
const TICK_MS = 1_000;

const SIGNS = { good: "✓", busy: "…", warn: "!", bad: "✗", stale: "?" };

const state = initialState();
const drawing = { waits: false, at: 0 };

function changed(): void {
  if (drawing.waits) return;
  drawing.waits = true;
  window.setTimeout(draw, Math.max(0, drawing.at + RENDER_MS - Date.now()));
}

const feed = startFeed(state, changed);
const actions = actionsOn(state, feed, changed);
const place = document.getElementById("page") as HTMLElement;

function draw(): void {
  drawing.waits = false;
  drawing.at = Date.now();
  const { tone, title } = headlineOf(state);
  document.title = `${SIGNS[tone]} ${title} · sasori`;
  if (document.hidden) return; // Of a hidden tab only the title can be seen.
  keepFocus(() =>
    render(
      <PageProvider value={{ state, actions, domain: domainOf(mastersOf(state)) }}>
        <App />
      </PageProvider>,
      place,
    ),
  );
}

/** The address says which story is open, so that a link to it can be sent. */
async function followAddress(): Promise<void> {
  if (location.hash === "#search") return;
  const certname = /^#node=(.+)$/.exec(location.hash)?.[1];
  await feed.open(certname === undefined ? undefined : decoded(certname));
  draw();
  if (certname === undefined) return;
  const title = document.getElementById("story-title");
  title?.focus({ preventScroll: true });
  title?.closest("article")?.scrollIntoView({ block: "nearest" });
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // The address is broken: sasori will answer that this is not a certname.
  }
}

draw();
void followAddress();
window.addEventListener("hashchange", () => void followAddress());
window.setInterval(changed, TICK_MS);
window.addEventListener("resize", changed);
document.addEventListener("visibilitychange", changed);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
