// What the page knows, and how events change it. Nothing here touches the screen or the network.
// Promises: memory is bounded whatever the fleet does: moves are counted per minute, and only the newest are kept.

import type { Instances, Masters, Move, Nodes, Pass, Replicas, Status, Story } from "../http/api-shapes.js";

export const MINUTE_MS = 60_000;
/** The plot's minutes: one hour. */
export const PLOT_MINUTES = 60;
const MAX_RECENT_MOVES = 100;
export const MAX_PASSES = 20;

/** A part that is read now and then: its last good answer, and why the newest one is missing. */
export interface Part<T> {
  value?: T;
  problem?: string;
}

/** Moves in one minute: `moved` from master to master; `all` also counts new and removed nodes. */
export interface MinuteOfMoves {
  moved: number;
  all: number;
}

export interface MoveLog {
  lastId: number;
  /** By the minute since the epoch. */
  minutes: Map<number, MinuteOfMoves>;
  /** The newest first. */
  recent: Move[];
  /** Since when all moves are counted, in ms since the epoch. */
  wholeSince: number;
}

export type Link = { kind: "connecting" } | { kind: "live" } | { kind: "lost"; since: number };

export interface Notice {
  good: boolean;
  text: string;
}

export interface State {
  link: Link;
  /** sasori's clock minus this machine's. */
  clockSkewMs: number;
  /** When sasori last answered, by its clock. */
  heardAt: number;
  status: Status | undefined;
  masters: Part<Masters>;
  instances: Part<Instances>;
  replicas: Part<Replicas>;
  registrations: Part<Nodes>;
  passes: Pass[];
  moves: MoveLog;
  search: { text: string; found: Part<Nodes> };
  story: ({ certname: string } & Part<Story>) | undefined;
  /** The call that changes something and is under way, such as "sync". */
  busy: string | undefined;
  /** The result of the last such call. */
  notice: Notice | undefined;
}

export const emptyMoveLog = (wholeSince: number): MoveLog => ({
  lastId: -1,
  minutes: new Map(),
  recent: [],
  wholeSince,
});

export const initialState = (): State => ({
  link: { kind: "connecting" },
  clockSkewMs: 0,
  heardAt: 0,
  status: undefined,
  masters: {},
  instances: {},
  replicas: {},
  registrations: {},
  passes: [],
  moves: emptyMoveLog(0),
  search: { text: "", found: {} },
  story: undefined,
  busy: undefined,
  notice: undefined,
});

/** Now, by sasori's clock. */
export const nowOf = ({ clockSkewMs }: State) => Date.now() + clockSkewMs;

/** Adds moves, in the order in which they happened; those that were counted already are skipped. */
export function addMoves(log: MoveLog, moves: readonly Move[], now: number): MoveLog {
  const news = moves.filter(({ id }) => id > log.lastId);
  const last = news.at(-1);
  if (last === undefined) return log;
  const oldest = Math.floor(now / MINUTE_MS) - PLOT_MINUTES;
  const minutes = new Map([...log.minutes].filter(([minute]) => minute >= oldest));
  for (const { at, from, to } of news) {
    const minute = Math.floor(Date.parse(at) / MINUTE_MS);
    const known = minutes.get(minute) ?? { moved: 0, all: 0 };
    const moved = from !== null && to !== null ? 1 : 0;
    minutes.set(minute, { moved: known.moved + moved, all: known.all + 1 });
  }
  const recent = [...news.slice(-MAX_RECENT_MOVES).reverse(), ...log.recent].slice(0, MAX_RECENT_MOVES);
  return { ...log, lastId: last.id, minutes, recent };
}

/** The plot's columns, the oldest first; the last is the current minute. */
export function plotOf(log: MoveLog, now: number): { at: number[]; moved: number[]; all: number[] } {
  const last = Math.floor(now / MINUTE_MS);
  const minutes = Array.from({ length: PLOT_MINUTES }, (_, index) => last - PLOT_MINUTES + 1 + index);
  const of = (minute: number) => log.minutes.get(minute) ?? { moved: 0, all: 0 };
  return {
    at: minutes.map((minute) => minute * 60),
    moved: minutes.map((minute) => of(minute).moved),
    all: minutes.map((minute) => of(minute).all),
  };
}

/** The number of moves in the last hour. `isWhole`: none is missing. */
export function hourOf(log: MoveLog, now: number): { total: number; moved: number; isWhole: boolean } {
  const { all, moved } = plotOf(log, now);
  const sum = (values: number[]) => values.reduce((total, value) => total + value, 0);
  const isWhole = log.wholeSince <= now - (PLOT_MINUTES - 1) * MINUTE_MS;
  return { total: sum(all), moved: sum(moved), isWhole };
}

/** The names of HAProxy's servers. */
export function mastersOf({ status, masters }: State): string[] {
  const told = status?.targets.flatMap(({ servers = [] }) => servers.map(({ name }) => name)) ?? [];
  const listed = masters.value?.masters.filter(({ servers }) => servers.length > 0) ?? [];
  const names = new Set([...listed.map(({ master }) => master), ...told]);
  return [...names].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

/** The domain that all names share, such as `.example.com`; empty if there is none. */
export function domainOf(names: readonly string[]): string {
  const [first = ""] = names;
  const labels = first.split(".").slice(1);
  const shared = labels.map((_, index) => `.${labels.slice(index).join(".")}`);
  return (names.length > 1 && shared.find((end) => names.every((name) => name.endsWith(end)))) || "";
}

/** Takes a pass that ended. A quiet one only updates when PuppetDB was read, and the number of nodes. */
export function addPass(state: State, pass: Pass): void {
  const { status } = state;
  if (status !== undefined && !pass.dryRun) {
    const polled = pass.source.outcome === "done";
    state.status = {
      ...status,
      lastPass: pass,
      nodes: pass.nodes,
      lastGoodPoll: polled
        ? new Date(Date.parse(pass.startedAt) + pass.durationMs).toISOString()
        : status.lastGoodPoll,
    };
  }
  if (pass.listed && pass.startedAt !== state.passes[0]?.startedAt)
    state.passes = [pass, ...state.passes].slice(0, MAX_PASSES);
}
