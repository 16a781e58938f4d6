// The one big line, the figures under it, and what is wrong with its remedies.
// Promises: what is shown is never older than it looks: without a connection the headline says so.

import type { Pass, Trouble } from "../http/api-shapes.js";
import { type Child, h } from "./dom.js";
import { icon, type Sign } from "./icons.js";
import { nowOf, plotOf, type State } from "./state.js";
import { age, clock, count, counted, name, prose, sentence } from "./words.js";

type Tone = Extract<Sign, "good" | "bad" | "warn" | "busy" | "stale">;

interface Headline {
  tone: Tone;
  title: string;
  detail: string;
}

export function headlineOf(state: State): Headline {
  const { status, link } = state;
  if (link.kind === "lost") {
    const shown =
      status === undefined
        ? "It has not answered yet."
        : `What you see is how things were at ${clock(new Date(state.heardAt).toISOString(), nowOf(state))}.`;
    return {
      tone: "stale",
      title: "The connection to sasori is lost",
      detail: `${shown} This page goes on trying.`,
    };
  }
  if (status === undefined) return { tone: "busy", title: "Looking", detail: "Waiting for sasori's answer." };
  const things = status.troubles.length;
  const detail = status.summary;
  switch (status.state) {
    case "in sync":
      return { tone: "good", title: "Everything is in sync", detail };
    case "catching up":
      return { tone: "busy", title: "Catching up", detail };
    case "starting":
      return { tone: "busy", title: "sasori is starting", detail };
    case "attention":
      return {
        tone: "warn",
        title: things === 1 ? "One thing waits for you" : `${count(things)} things wait for you`,
        detail,
      };
    case "failing":
      return { tone: "bad", title: failingTitle(status.troubles), detail };
  }
}

function failingTitle(troubles: readonly Trouble[]): string {
  const critical = troubles.filter(({ severity }) => severity === "critical").length;
  return critical <= 1 ? "Something is broken" : `${count(critical)} things are broken`;
}

export function renderHeadline(state: State): Node[] {
  const { tone, title, detail } = headlineOf(state);
  return [
    h(
      "div",
      { class: `headline ${tone}` },
      h(
        "div",
        { class: "page" },
        h("div", { class: "sign" }, icon(tone)),
        h(
          "div",
          { role: "status", "aria-live": tone === "bad" ? "assertive" : "polite", "aria-atomic": "true" },
          h("h1", {}, title),
          h("p", {}, prose(detail, nowOf(state))),
        ),
      ),
    ),
    h("div", { class: "page" }, renderFigures(state)),
  ];
}

function renderFigures(state: State): Child {
  const { status } = state;
  if (status === undefined) return undefined;
  const now = nowOf(state);
  const haproxys = status.targets.filter(({ kind }) => kind === "haproxy");
  const inSync = haproxys.filter((target) => target.inSync).length;
  const moves = plotOf(state.moves, now).all.reduce((sum, all) => sum + all, 0);
  const figure = (label: string, value: Child, note?: Child) =>
    h("div", {}, h("dt", {}, label), h("dd", {}, h("strong", {}, value), " ", h("small", {}, note)));
  return h(
    "dl",
    { class: "figures" },
    figure("Nodes", count(status.nodes)),
    figure(
      haproxys.length === 1 ? "HAProxy" : "HAProxys",
      haproxys.length === 0 ? "none" : `${inSync} of ${haproxys.length}`,
      haproxys.length > 0 && "in sync",
    ),
    figure("PuppetDB read", status.lastGoodPoll === null ? "never" : age(status.lastGoodPoll, now)),
    figure("Moves", count(moves), "in the last hour"),
  );
}

export function renderTroubles(state: State): Node[] {
  const troubles = state.status?.troubles ?? [];
  const held = state.status?.lastPass?.held;
  const now = nowOf(state);
  if (troubles.length === 0 && held === undefined) return [];
  return [
    h("h2", {}, "What is wrong, and what to do"),
    h(
      "ul",
      { class: "troubles" },
      troubles.map((trouble) =>
        h(
          "li",
          { class: trouble.severity, "data-key": `${trouble.code} ${trouble.where} ${trouble.what}` },
          h(
            "p",
            { class: "label" },
            icon(trouble.severity === "critical" ? "bad" : "warn"),
            trouble.severity === "critical" ? "Broken" : "Worth a look",
          ),
          h(
            "div",
            {},
            h("p", {}, h("strong", {}, name(trouble.where)), " "),
            h("p", {}, sentence(trouble.what, now)),
          ),
          h(
            "div",
            {},
            h(
              "p",
              {},
              h("span", { class: "unseen" }, "What to do: "),
              icon("arrow"),
              sentence(trouble.remedy, now),
            ),
            h("p", { class: "quiet" }, h("code", {}, trouble.code)),
          ),
        ),
      ),
    ),
    ...(held === undefined ? [] : [renderHeld(state, held)]),
  ];
}

function renderHeld(state: State, held: NonNullable<Pass["held"]>): Node {
  return h(
    "article",
    { class: "held", "aria-labelledby": "held-title" },
    h("h3", { id: "held-title" }, `${counted(held.count, "node")} would be removed`),
    h(
      "p",
      {},
      sentence(held.reason, nowOf(state)),
      ". Until somebody approves, they keep their routes. If PuppetDB has lost them by mistake, restore it and do nothing here.",
    ),
    renderSamples(held),
    h(
      "p",
      { class: "buttons" },
      h(
        "button",
        { class: "danger", "data-do": "approve", "aria-disabled": state.busy ? "true" : undefined },
        state.busy === "approve" ? "Removing …" : "Approve the removal …",
      ),
      h("span", { class: "quiet" }, "plan ", h("code", {}, held.id)),
    ),
  );
}

/** The first names of a long list, and how many more there are. */
export function renderSamples({
  count: all,
  samples,
}: {
  count: number;
  samples: readonly string[];
}): Node[] {
  const more = all - samples.length;
  const list = h(
    "ul",
    { class: "samples" },
    samples.map((sample) => h("li", {}, name(sample))),
  );
  return more > 0 ? [list, h("p", { class: "quiet" }, `and ${count(more)} more`)] : [list];
}

/** How the last thing that the reader did went. */
export function renderNotice({ notice }: State): Node[] {
  if (notice === undefined) return [];
  return [
    h(
      "p",
      { class: notice.good ? "good" : "bad" },
      icon(notice.good ? "good" : "bad"),
      h("span", {}, notice.text),
      h("button", { type: "button", class: "plain", "data-do": "dismiss" }, "Dismiss"),
    ),
  ];
}

/** The line at the top: who this is, whether it is live, and "sync now". */
export function renderTopBar(state: State): Node[] {
  const { link, status } = state;
  const words = { live: "live", connecting: "connecting", lost: "not connected" }[link.kind];
  return [
    h("a", { class: "brand", href: "#" }, "sasori"),
    h("span", { class: "version quiet" }, status?.version),
    h("span", { class: `link ${link.kind}` }, words),
    h(
      "button",
      { class: "primary", "data-do": "sync", "aria-disabled": state.busy ? "true" : undefined },
      state.busy === "sync" ? "Syncing …" : "Sync now",
    ),
  ];
}
