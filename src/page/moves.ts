// The moves: the last hour as a plot, and the newest as a list.

import uPlot from "uplot";
import type { Move } from "../http/api-shapes.js";
import { type Child, h } from "./dom.js";
import { icon } from "./icons.js";
import { MINUTE_MS, nowOf, plotOf, type State } from "./state.js";
import { clock, count, moment, name, nodeLink, SOURCE_WORDS } from "./words.js";

const PLOT_HEIGHT_PX = 150;
const FIRST_MOVES = 8;

export function renderMoves(state: State): Node[] {
  const now = nowOf(state);
  const { recent, wholeSince } = state.moves;
  const more = recent.slice(FIRST_MOVES);
  return [
    h("h2", {}, "Moves in the last hour"),
    h(
      "figure",
      {},
      h("div", { id: "plot", "data-keep": true, "aria-hidden": "true" }),
      h("figcaption", {}, captionOf(state, now)),
    ),
    wholeSince > now - 59 * MINUTE_MS &&
      h(
        "p",
        { class: "quiet" },
        `Moves before ${clock(new Date(wholeSince).toISOString(), now)} are no longer known.`,
      ),
    recent.length === 0
      ? h("p", { class: "quiet" }, "No node has moved since sasori started.")
      : renderMoveList(recent.slice(0, FIRST_MOVES), now),
    more.length > 0 &&
      h("details", {}, h("summary", {}, `${count(more.length)} before these`), renderMoveList(more, now)),
  ].filter((node) => node !== false);
}

function captionOf(state: State, now: number): Child {
  const { at, all, moved } = plotOf(state.moves, now);
  const total = all.reduce((sum, value) => sum + value, 0);
  if (total === 0) return "None.";
  const peak = Math.max(...all);
  const when = new Date((at[all.indexOf(peak)] ?? 0) * 1_000).toISOString();
  const between = moved.reduce((sum, value) => sum + value, 0);
  return [
    h("span", { class: "key moved" }, `${count(between)} from master to master`),
    h("span", { class: "key other" }, `${count(total - between)} new or removed`),
    h("span", {}, `most at ${clock(when, now).slice(0, -3)}: ${count(peak)} in a minute`),
  ];
}

/** Moves, the newest first. `ofOne`: of one node, whose name need not be repeated. */
export const renderMoveList = (moves: readonly Move[], now: number, ofOne = false) =>
  h(
    "ol",
    { class: ofOne ? "moves of-one" : "moves" },
    moves.map((move) =>
      h(
        "li",
        { "data-key": String(move.id) },
        h("span", { class: "when" }, moment(move.at, clock(move.at, now))),
        !ofOne && h("span", { class: "who" }, nodeLink(move.certname)),
        h(
          "span",
          { class: "route" },
          place(move.from, "new"),
          icon("arrow"),
          unseen(" to "),
          place(move.to, "removed"),
        ),
        h(
          "span",
          { class: "source quiet" },
          move.source === null ? "left PuppetDB" : SOURCE_WORDS[move.source],
        ),
      ),
    ),
  );

const place = (master: string | null, none: string) =>
  master === null ? h("span", { class: "quiet" }, none) : name(master);
const unseen = (text: string) => h("span", { class: "unseen" }, text);

/** The plot lives outside of the rendering: uPlot draws on a canvas of its own, which is told of new columns. */
export class MovesPlot {
  #plot: uPlot | undefined;
  #drawn = "";

  /** Draws if there is something new to draw: columns, the width, light or dark. */
  update(state: State): void {
    const place = document.getElementById("plot");
    if (place === null) return;
    const { at, moved, all } = plotOf(state.moves, nowOf(state));
    const look = getComputedStyle(document.documentElement).getPropertyValue("--plot-moved");
    const wanted = JSON.stringify([at[0], all, moved, place.clientWidth, look]);
    if (wanted === this.#drawn || place.clientWidth === 0) return;
    this.#drawn = wanted;
    this.#plot?.destroy();
    this.#plot = new uPlot(plotOptions(place.clientWidth, Math.max(...all)), [at, all, moved], place);
  }
}

function plotOptions(width: number, most: number): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const colour = (variable: string) => style.getPropertyValue(variable).trim();
  const bars = uPlot.paths.bars?.({ size: [0.7, 24], radius: 0.15, align: 1 });
  const series = (variable: string): uPlot.Series => ({
    fill: colour(variable),
    stroke: colour(variable),
    width: 0,
    points: { show: false },
    ...(bars && { paths: bars }),
  });
  const axis = {
    stroke: colour("--quiet"),
    font: `12px ${style.fontFamily}`,
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: PLOT_HEIGHT_PX,
    padding: [8, 18, 0, 0],
    cursor: { show: false },
    legend: { show: false },
    // The last bar begins at its minute: it needs the room of one more.
    scales: {
      x: { time: true, range: (_plot, first, last) => [first, last + 60] },
      y: { range: [0, Math.max(4, most * 1.1)] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        size: 24,
        gap: 4,
        incrs: width < 400 ? [20 * 60] : [10 * 60],
        values: (_plot, splits) =>
          splits.map((at) => clock(new Date(at * 1_000).toISOString(), at * 1_000).slice(0, 5)),
      },
      {
        ...axis,
        size: 44,
        gap: 6,
        incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5],
        values: (_plot, splits) => splits.map(count),
      },
    ],
    series: [{}, series("--plot-other"), series("--plot-moved")],
  };
}
