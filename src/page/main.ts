// The page: brings state, network and screen together. All listeners are here; what a control does stands in its
// `data-do`. Rendering is a function of the state, at most some times a second, and not at all in a hidden tab.

import type { Story } from "../http/api-shapes.js";
import { lacking } from "../http/lacking.js";
import { Cancelled, change, messageOf, Refusal } from "./calls.js";
import { askToken, confirm } from "./dialogs.js";
import { h, keepFocus, morph } from "./dom.js";
import { startFeed } from "./feed.js";
import {
  headlineOf,
  renderHeadline,
  renderNotice,
  renderSamples,
  renderTopBar,
  renderTroubles,
} from "./headline.js";
import { renderInstances, renderMasters } from "./masters.js";
import { MovesPlot, renderMoves } from "./moves.js";
import { renderPasses } from "./passes.js";
import { initialState, type Notice, type State } from "./state.js";
import { renderFound, renderRegistrations, renderStory } from "./story.js";
import { count, counted, duration } from "./words.js";

/** A pass may bring thousands of events; the eye needs a few pictures a second. */
const RENDER_MS = 200;
/** "3 s ago" goes on when nothing else happens. */
const TICK_MS = 1_000;
const TYPING_MS = 150;
/** Good news goes by itself; bad news waits to be read. */
const NOTICE_MS = 10_000;

const SIGNS = { good: "✓", busy: "…", warn: "!", bad: "✗", stale: "?" };

const PARTS: Record<string, (state: State) => Node[]> = {
  top: renderTopBar,
  headline: renderHeadline,
  notice: renderNotice,
  troubles: renderTroubles,
  found: renderFound,
  story: renderStory,
  masters: renderMasters,
  instances: renderInstances,
  moves: renderMoves,
  passes: renderPasses,
  registrations: renderRegistrations,
};

const state = initialState();
const plot = new MovesPlot();
const drawing = { waits: false, at: 0 };

function changed(): void {
  if (drawing.waits) return;
  drawing.waits = true;
  window.setTimeout(render, Math.max(0, drawing.at + RENDER_MS - Date.now()));
}

function render(): void {
  drawing.waits = false;
  drawing.at = Date.now();
  const { tone, title } = headlineOf(state);
  document.title = `${SIGNS[tone]} ${title} · sasori`;
  if (document.hidden) return; // Of a hidden tab only the title can be seen.
  keepFocus(renderParts, searchField);
  document.documentElement.dataset.link = state.link.kind;
  plot.update(state);
}

function renderParts(): void {
  for (const [id, part] of Object.entries(PARTS)) {
    const place = document.getElementById(id);
    try {
      if (place !== null) morph(place, part(state));
    } catch (error) {
      reportError(error); // In the console; the other parts are still to be seen.
    }
  }
}

const feed = startFeed(state, changed);
window.setInterval(changed, TICK_MS);
window.addEventListener("resize", changed);
document.addEventListener("visibilitychange", changed);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);

// ---- what the reader does

document.addEventListener("click", (event) => {
  const control = (event.target as Element).closest<HTMLElement>("button[data-do], a[data-do]");
  if (control === null || control.getAttribute("aria-disabled") === "true") return;
  const { do: what, certname } = control.dataset;
  if (what === "skip" || what === "close") {
    // Not by the address alone, which would scroll to the top or close a story.
    event.preventDefault();
    searchField.focus();
  }
  if (what === "close") {
    history.pushState(null, "", location.pathname);
    followAddress();
  }
  if (what === "sync") void sync("sync", {});
  if (what === "full") void sync("full", { full: true });
  if (what === "approve") void approve();
  if (what === "end" && certname !== undefined) void endRegistration(certname);
  if (what === "dismiss") {
    state.notice = undefined;
    changed();
  }
});

document.addEventListener("submit", (event) => {
  const form = event.target as HTMLFormElement;
  const { do: what } = form.dataset;
  if (what === undefined) return;
  event.preventDefault();
  if (what === "search") openFirst();
  if (what === "register") void register(form);
});

let typing: number | undefined;
const searchField = document.getElementById("search") as HTMLInputElement;
const searchText = () => searchField.value.trim().toLowerCase();
searchField.addEventListener("input", () => {
  window.clearTimeout(typing);
  typing = window.setTimeout(() => void feed.search(searchText()), TYPING_MS);
});

/** Enter in the search: the node of that name, else the only or first one that was found. */
async function openFirst(): Promise<void> {
  window.clearTimeout(typing);
  const text = searchText();
  await feed.search(text);
  const found = state.search.found.value?.nodes ?? [];
  const certname = found.some((node) => node.certname === text) ? text : found[0]?.certname;
  if (certname !== undefined) location.hash = `node=${encodeURIComponent(certname)}`;
}

/** The address says which story is open, so that it can be sent to somebody. */
function followAddress(): void {
  const certname = /^#node=(.+)$/.exec(location.hash)?.[1];
  const opened = certname === undefined ? undefined : decoded(certname);
  void feed.open(opened).then(() => {
    render();
    const title = document.getElementById("story-title");
    if (opened === undefined || title === null) return;
    title.focus({ preventScroll: true });
    title.closest(".story")?.scrollIntoView({ block: "nearest" });
  });
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // A broken address: sasori will say that this is no certname.
  }
}
window.addEventListener("hashchange", followAddress);
followAddress();

// ---- what changes something

/** Does it, says how it went, and reads again what it may have changed. */
async function perform(what: string, call: () => Promise<string | Notice>): Promise<boolean> {
  if (state.busy !== undefined) return false;
  state.busy = what;
  state.notice = undefined;
  changed();
  try {
    const told = await call();
    const notice = typeof told === "string" ? { good: true, text: told } : told;
    state.notice = notice;
    if (!notice.good) return true;
    window.setTimeout(() => {
      if (state.notice === notice) state.notice = undefined;
    }, NOTICE_MS);
    return true;
  } catch (error) {
    state.notice = error instanceof Cancelled ? undefined : { good: false, text: messageOf(error) };
    return false;
  } finally {
    state.busy = undefined;
    changed();
    feed.refresh();
  }
}

interface PassAnswer {
  outcome: "done" | "failed" | "held";
  moved: number;
  durationMs: number;
  approvalUnmatched?: true;
}

const sync = (what: string, body: { full?: boolean; approve?: string }) =>
  perform(what, async () => {
    const report = await change<PassAnswer>("POST", "sync", body, askToken);
    if (report.approvalUnmatched) {
      throw new Refusal(
        409,
        "Nothing was let through: no held plan has this id, or PuppetDB could not be read.",
      );
    }
    const moved = report.moved === 0 ? "nothing to change" : `${counted(report.moved, "node")} changed`;
    const outcome = {
      done: "Pass done",
      failed: "Pass not wholly done, see above",
      held: "Pass done, but for what waits for approval",
    };
    const text = `${outcome[report.outcome]}: ${moved}, ${duration(report.durationMs)}.`;
    return { good: report.outcome !== "failed", text };
  });

async function approve(): Promise<void> {
  const held = state.status?.lastPass?.held;
  if (held === undefined) return;
  const sure = await confirm(
    `Remove ${counted(held.count, "node")} from the map?`,
    `Remove ${count(held.count)}`,
    [
      h("p", {}, "PuppetDB no longer lists them. Requests for them will no longer find their master:"),
      renderSamples(held),
      h("p", { class: "quiet" }, "Approved is exactly this set of nodes, plan ", h("code", {}, held.id), "."),
    ],
  );
  if (sure) await sync("approve", { approve: held.id });
}

const nodePath = (certname: string) => `nodes/${encodeURIComponent(certname)}`;

/** What a change that is in force still lacks: targets that the next pass tells, or the state file. */
function lacks(story: Story): string {
  const untold = lacking(story);
  const targets = ` ${counted(untold, "target")} could not be told yet; the next pass does it.`;
  const file = story.unsaved ? ` But ${story.unsaved.message}.` : "";
  return (untold > 0 ? targets : "") + file;
}

async function register(form: HTMLFormElement): Promise<void> {
  const fields = new FormData(form);
  const certname = form.dataset.certname ?? String(fields.get("certname")).trim().toLowerCase();
  const master = String(fields.get("master"));
  const done = await perform("register", async () => {
    const story = await change<Story>("PUT", nodePath(certname), { master }, askToken);
    return `${certname} now goes to ${master}.${lacks(story)}`;
  });
  if (done) form.reset();
}

const endRegistration = (certname: string) =>
  perform("end", async () => {
    const story = await change<Story>("DELETE", nodePath(certname), undefined, askToken);
    const { master } = story.desired;
    const now = master === undefined ? "it is no longer in the map" : `it goes to ${master}`;
    return `PuppetDB decides about ${certname} again: ${now}.${lacks(story)}`;
  });
