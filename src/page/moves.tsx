// What changed: the last hour's moves, minute by minute, and the newest as a list with where each comes from.

import { useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import type { Move } from "../http/api-shapes.js";
import css from "./moves.module.css";
import { usePage } from "./page.js";
import { hourOf, nowOf, plotOf, type State } from "./state.js";
import { Card, NodeLink, Quiet, Route, Time } from "./ui.js";
import { clock, minute, number, remarksOf, SOURCE_WORDS } from "./words.js";

const PLOT_HEIGHT_PX = 120;
const FIRST_MOVES = 8;

export function MovesCard() {
  const { state } = usePage();
  const now = nowOf(state);
  const { recent, wholeSince } = state.moves;
  const more = recent.slice(FIRST_MOVES);
  return (
    <Card label="Moves">
      <figure>
        <Plot state={state} />
        <Caption state={state} />
      </figure>
      {!hourOf(state.moves, now).isWhole && (
        <Quiet>{`Moves before ${clock(new Date(wholeSince).toISOString(), now)} are no longer kept.`}</Quiet>
      )}
      {recent.length === 0 ? (
        <Quiet>No node has moved since sasori started.</Quiet>
      ) : (
        <MoveList moves={recent.slice(0, FIRST_MOVES)} now={now} />
      )}
      {more.length > 0 && (
        <details class={css.more}>
          <summary>{`${number(more.length)} earlier`}</summary>
          <MoveList moves={more} now={now} />
        </details>
      )}
    </Card>
  );
}

function Caption({ state }: { state: State }) {
  const now = nowOf(state);
  const { at, all } = plotOf(state.moves, now);
  const { total, moved, isWhole } = hourOf(state.moves, now);
  if (total === 0) return <figcaption class={css.caption}>None in the last hour.</figcaption>;
  const peak = Math.max(...all);
  const when = new Date((at[all.indexOf(peak)] ?? 0) * 1_000).toISOString();
  const atLeast = isWhole ? "" : "more than ";
  return (
    <figcaption class={css.caption}>
      <span>In the last hour:</span>
      <span class={css.key}>{`${atLeast}${number(moved)} from master to master`}</span>
      <span class={css.key} data-kind="other">
        {`${atLeast}${number(total - moved)} new or removed`}
      </span>
      <span>{`most at ${minute(when, now)}: ${number(peak)} in a minute`}</span>
    </figcaption>
  );
}

/** Moves, the newest first. `ofOne`: all are of one node, so its name is left out. */
export const MoveList = ({ moves, now, ofOne }: { moves: readonly Move[]; now: number; ofOne?: true }) => (
  <ol class={css.moves}>
    {moves.map((move) => (
      <li key={move.id}>
        <Time at={move.at}>{clock(move.at, now)}</Time>
        <div>
          {ofOne === undefined && <NodeLink>{move.certname}</NodeLink>}
          <div class={css.what}>
            <Route from={move.from} to={move.to} none="removed" />
            <span class={css.source}>{whyOf(move)}</span>
          </div>
        </div>
      </li>
    ))}
  </ol>
);

/** Where it comes from, and the remarks of the person who made it. */
const whyOf = (move: Move) =>
  (move.source === null ? "no longer in PuppetDB" : SOURCE_WORDS[move.source]) + remarksOf(move);

/** uPlot draws on its own canvas, outside Preact. */
function Plot({ state }: { state: State }) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<{ drawn: string; uplot: uPlot | undefined }>({ drawn: "", uplot: undefined });
  useLayoutEffect(() => {
    const { current } = place;
    if (current === null || current.clientWidth === 0) return;
    const { at, moved, all } = plotOf(state.moves, nowOf(state));
    const colours = coloursOf(current);
    const wanted = JSON.stringify([at[0], all, moved, current.clientWidth, colours]);
    if (wanted === plot.current.drawn) return;
    plot.current.uplot?.destroy();
    const options = plotOptions(current.clientWidth, Math.max(...all), colours);
    plot.current = { drawn: wanted, uplot: new uPlot(options, [at, all, moved], current) };
  });
  return <div ref={place} class={css.plot} aria-hidden="true" />;
}

type Colours = Record<"accent" | "soft" | "quiet" | "line", string>;

/** The colours as computed by the browser, for light or dark mode. */
function coloursOf(place: HTMLElement): Colours {
  const of = (variable: keyof Colours) => {
    place.style.color = `var(--${variable})`;
    return getComputedStyle(place).color;
  };
  return { accent: of("accent"), soft: of("soft"), quiet: of("quiet"), line: of("line") };
}

function plotOptions(width: number, most: number, colours: Colours): uPlot.Options {
  const bars = uPlot.paths.bars?.({ size: [0.7, 24], radius: 0.15, align: 1 });
  const series = (colour: string): uPlot.Series => ({
    fill: colour,
    stroke: colour,
    width: 0,
    points: { show: false },
    ...(bars && { paths: bars }),
  });
  const axis = {
    stroke: colours.quiet,
    font: `12px ${getComputedStyle(document.documentElement).fontFamily}`,
    grid: { stroke: colours.line, width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height: PLOT_HEIGHT_PX,
    padding: [8, 18, 0, 0],
    cursor: { show: false },
    legend: { show: false },
    // The last bar begins at its minute, so the axis needs room for one more.
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
        values: (_plot, splits) => splits.map((at) => minute(new Date(at * 1_000).toISOString(), at * 1_000)),
      },
      {
        ...axis,
        size: 44,
        gap: 6,
        space: 24,
        incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5],
        values: (_plot, splits) => splits.map(number),
      },
    ],
    series: [{}, series(colours.soft), series(colours.accent)],
  };
}
