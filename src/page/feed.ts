// Keeps the page's state up to date: by the stream of events, and by reading what the stream does not have.
// Promises: after a lost connection everything is read again; a loss is noticed within seconds, even if the connection is only
// silent; a burst of events causes one round of reads. While the tab is hidden, only the stream is read.

import type {
  Instances,
  Masters,
  Move,
  Moves,
  Nodes,
  Pass,
  Replicas,
  Status,
  Story,
} from "../http/api-shapes.js";
import { type Answer, messageOf, nodePath, Refusal, read } from "./calls.js";
import {
  addMoves,
  addPass,
  emptyMoveLog,
  MAX_PASSES,
  MINUTE_MS,
  type MoveLog,
  nowOf,
  type Part,
  PLOT_MINUTES,
  type State,
} from "./state.js";

/** Loads and queues are read this often; this is also how a silent loss of the connection is noticed. */
const POLL_MS = 5_000;
/** At most one round of reads in this time, however many passes and moves are reported. */
const REFRESH_MS = 1_500;
const RETRY_MS = { first: 1_000, most: 10_000 };
/** The last hour's moves are read in pages of 1,000, at most this many. */
const MAX_MOVE_PAGES = 20;
const MAX_REGISTRATIONS = 100;
const MAX_FOUND = 20;

export interface Feed {
  /** Looks for nodes by a part of their names. */
  search(text: string): Promise<void>;
  /** Opens a node's story; undefined closes it. */
  open(certname: string | undefined): Promise<void>;
  /** Reads again what a change made on this page may have changed. */
  refresh(): void;
}

/** Starts the feed; `changed` is called after every change of the state. */
export function startFeed(state: State, changed: () => void): Feed {
  let events: EventSource | undefined;
  let retryMs = RETRY_MS.first;
  let refreshing = false;
  /** Moves that arrive while those of the last hour are being read. */
  let early: Move[] | undefined;

  const heard = <T>({ value, clockSkewMs }: Answer<T>): T => {
    state.clockSkewMs = clockSkewMs;
    state.heardAt = nowOf(state);
    return value;
  };

  /** Reads into a part of the state. If that fails, the old value stays. */
  async function fill<T>(part: Part<T>, resource: string): Promise<void> {
    try {
      part.value = heard(await read<T>(resource));
      delete part.problem;
    } catch (error) {
      part.problem = messageOf(error);
      if (!(error instanceof Refusal)) lose();
    }
    changed();
  }

  const readStory = async () => state.story && fill<Story>(state.story, nodePath(state.story.certname));

  const poll = () =>
    Promise.all([
      fill<Masters>(state.masters, "masters"),
      fill<Instances>(state.instances, "instances"),
      // Whether replicas share a database does not change while sasori runs.
      state.replicas.value?.shared !== false && fill<Replicas>(state.replicas, "replicas"),
      fill<Nodes>(state.registrations, `nodes?source=registration&limit=${MAX_REGISTRATIONS}`),
      readStory(),
    ]);

  function pollIfSeen(): void {
    if (!document.hidden && state.link.kind === "live") void poll();
  }

  function refresh(): void {
    if (refreshing) return;
    refreshing = true;
    window.setTimeout(() => {
      refreshing = false;
      pollIfSeen();
    }, REFRESH_MS);
  }

  /** The moves of the last hour, page by page from the newest, and those that happen meanwhile. */
  async function readMoves(): Promise<void> {
    const meanwhile: Move[] = [];
    early = meanwhile;
    try {
      const { log, known } = await readLastHour();
      if (early !== meanwhile) return; // The stream was lost meanwhile, and another reading has begun.
      state.moves = addMoves(addMoves(log, known, nowOf(state)), meanwhile, nowOf(state));
    } finally {
      if (early === meanwhile) early = undefined;
    }
  }

  async function readLastHour(): Promise<{ log: MoveLog; known: Move[] }> {
    const since = nowOf(state) - PLOT_MINUTES * MINUTE_MS;
    const known: Move[] = [];
    let wholeSince = since;
    let next: number | null | undefined;
    for (let page = 0; page < MAX_MOVE_PAGES && next !== null; page += 1) {
      const before: string = next === undefined ? "" : `&before=${next}`;
      const { moves, ...rest } = heard(await read<Moves>(`moves?limit=1000${before}`));
      known.push(...moves);
      next = rest.next;
      const oldest = moves.at(-1);
      if (oldest === undefined || Date.parse(oldest.at) < since) break;
      // Older moves are forgotten, or too many to read.
      if (next !== null ? page === MAX_MOVE_PAGES - 1 : known.length >= rest.kept) {
        wholeSince = Date.parse(oldest.at);
      }
    }
    return { log: emptyMoveLog(wholeSince), known: known.reverse() };
  }

  /** Reads what the stream does not send by itself. It sends the status first. */
  async function readAll(): Promise<void> {
    try {
      const { passes } = heard(await read<{ passes: Pass[] }>("passes"));
      const lastRead = passes[0]?.startedAt ?? "";
      // The stream may have sent newer ones already.
      const newer = state.passes.filter(({ startedAt }) => startedAt > lastRead);
      state.passes = [...newer, ...passes].slice(0, MAX_PASSES);
      await Promise.all([readMoves(), poll()]);
    } catch (error) {
      if (!(error instanceof Refusal)) lose();
    }
    changed();
  }

  function listen<T>(name: string, use: (value: T) => void): void {
    events?.addEventListener(name, (event) => {
      state.heardAt = nowOf(state);
      use(JSON.parse((event as MessageEvent<string>).data) as T);
      changed();
    });
  }

  function connect(): void {
    events?.close();
    events = new EventSource("api/v1/events");
    events.addEventListener("open", () => {
      retryMs = RETRY_MS.first;
      state.link = { kind: "live" };
      void readAll();
    });
    events.addEventListener("error", lose);
    listen<Status>("status", (status) => {
      state.status = status;
      refresh();
    });
    listen<Pass>("pass", (pass) => {
      addPass(state, pass);
      refresh();
    });
    listen<Move[]>("moves", (moves) => {
      if (early !== undefined) early.push(...moves);
      else state.moves = addMoves(state.moves, moves, nowOf(state));
    });
    listen("reset", () => void readAll());
  }

  /** The browser's own reconnect would miss events. So the stream is opened again, and everything is read again. */
  function lose(): void {
    if (events === undefined) return;
    events.close();
    events = undefined;
    if (state.link.kind !== "lost") state.link = { kind: "lost", since: nowOf(state) };
    window.setTimeout(connect, retryMs);
    retryMs = Math.min(retryMs * 2, RETRY_MS.most);
    changed();
  }

  let latest = 0;
  connect();
  window.setInterval(pollIfSeen, POLL_MS);
  document.addEventListener("visibilitychange", pollIfSeen);

  return {
    refresh,
    async search(text) {
      latest += 1;
      const mine = latest;
      const found: Part<Nodes> = {};
      state.search = { text, found: text === "" ? {} : state.search.found };
      changed();
      if (text === "") return;
      await fill<Nodes>(found, `nodes?q=${encodeURIComponent(text)}&limit=${MAX_FOUND}`);
      if (mine !== latest) return; // The reader has typed more.
      state.search = { text, found };
      changed();
    },
    async open(certname) {
      state.story = certname === undefined ? undefined : { certname };
      changed();
      await readStory();
    },
  };
}
