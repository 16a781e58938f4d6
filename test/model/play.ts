// Plays a history against the real programs and the model, and compares. Every request is judged at once; the map file
// and both live maps are compared entry by entry wherever the history says so. Nothing waits for time to pass.

import { setImmediate as turn } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { type Command, type Evidence, GONE, Model } from "./model.js";
import { KNOWN_AT_START, NODES, type Step } from "./steps.js";
import { type Answer, NOWHERE, type Side, until, type Who, World } from "./world.js";

const MINUTE_MS = 60_000;
/** Too old to be fresh, and not older than what a sasori that starts anew may find to be news. */
const MINUTES_MS = 13 * MINUTE_MS;
const YEAR_MS = 365 * 24 * 60 * MINUTE_MS;
/** A failed pass is asked for again this often where everything is up: a connection may just have gone. */
const TRIES = 3;

export interface Setting {
  /** Which of the HAProxy instances that there are. */
  haproxys: [number, number];
  /** The gateway repeats requests of every method: the masters check whose node it is before they act. */
  replay: "safe" | "all";
}

export const settingOf = (seed: number): Setting => ({
  haproxys: [Math.abs(seed) % 3, (Math.abs(seed) + 1) % 3],
  replay: Math.abs(seed) % 2 === 0 ? "safe" : "all",
});

export interface Outcome {
  /** One line for each step that was played, with what came of it. */
  told: string[];
  /** What was otherwise than the model says, where the history ended by it. */
  divergence: string[];
  /** How often everything was compared, and how many requests were judged. */
  compared: number;
  requests: number;
}

/** Stops at the first divergence. Rejects only where the laboratory itself fails. */
export function play(history: readonly Step[], setting: Setting): Promise<Outcome> {
  const options = {
    haproxys: setting.haproxys,
    variables: setting.replay === "all" ? { GATEWAY_REPLAY: "all" } : ({} as Record<string, string>),
    env: {},
  };
  return World.with(options, (world) => new Player(world, setting).play(history));
}

/** 502 with the node's story: it is in force, and a target that cannot be reached gets it later. */
const isInForce = (status: number, body: unknown): boolean => {
  const { desired, unsaved } = (body ?? {}) as Record<string, unknown>;
  return status === 200 || (status === 502 && desired !== undefined && unsaved === undefined);
};

/** Something that the model does not allow. */
class Divergence extends Error {
  readonly lines: string[];

  constructor(lines: string[]) {
    super(lines.join("\n"));
    this.lines = lines;
  }
}

class Player {
  readonly #world: World;
  readonly #setting: Setting;
  readonly #model = new Model();
  readonly #told: string[] = [];
  /** Set by hand, and not yet seen by a comparison; where it was disturbed meanwhile, it is only allowed. */
  #hands: { node: string; side: Side; evidence: Evidence }[] = [];
  /**
   * HAProxy instances that were started, or beside which sasori was, since everything was compared: what they should hold is
   * not known.
   */
  readonly #unseen = new Set<Side>();
  /** Registered with the second sasori since everything was compared. */
  readonly #unheard = new Set<string>();
  /** Nodes whose route somebody has set by hand, and whether there ever was a second sasori. */
  readonly #setByHand = new Set<string>();
  #hadSecond = false;
  /** Since when a node has been at its home, by the clock of the world. */
  readonly #homeSince = new Map<string, number>();
  #backup: Command[] | undefined;
  #lastTime = 0;
  #compared = 0;
  #requests = 0;

  constructor(world: World, setting: Setting) {
    this.#world = world;
    this.#setting = setting;
  }

  async play(history: readonly Step[]): Promise<Outcome> {
    let divergence: string[] = [];
    try {
      await this.#begin();
      for (const step of history) {
        const said = await this.#do(step);
        if (said !== undefined) this.#tell(step, said);
      }
    } catch (error) {
      if (!(error instanceof Divergence)) {
        const logs = this.#world.running.map((who) => this.#world.log(who)).join("\n");
        throw new Error(`the laboratory: ${error}\n${this.#told.slice(-12).join("\n")}\n${logs}`, {
          cause: error,
        });
      }
      divergence = error.lines;
    }
    return { told: this.#told, divergence, compared: this.#compared, requests: this.#requests };
  }

  #tell(step: Step, said: string): void {
    const { step: name, ...rest } = step;
    const about = Object.entries(rest).map(([key, value]) =>
      typeof value === "object" ? `${key} ${JSON.stringify(value)}` : `${key} ${value}`,
    );
    this.#told.push(
      `${this.#told.length + 1}. ${[name, ...about].join(", ")}${said === "" ? "" : `: ${said}`}`,
    );
  }

  /** A millisecond of its own. */
  async #now(): Promise<number> {
    while (Date.now() <= this.#lastTime) await turn();
    this.#lastTime = Date.now();
    return this.#lastTime;
  }

  async #begin(): Promise<void> {
    for (const [index, node] of NODES.slice(0, KNOWN_AT_START).entries()) {
      const at = Date.now() - (120 + index) * MINUTE_MS;
      const producer = `master${1 + (index % 3)}`;
      this.#submit({ node, kind: "facts", producer, at, received: at });
      this.#submit({ node, kind: "report", producer, at: at + 1, received: at + 1 });
      this.#settle(node, producer, at);
    }
    await this.#compare();
  }

  #submit(command: Command): void {
    this.#world.store(command);
    this.#model.submit(command);
  }

  /** The node is there now, unless it has been elsewhere since. */
  #settle(node: string, master: string, at: number): void {
    if ((this.#homeSince.get(node) ?? 0) > at) return;
    this.#world.homes.set(node, master);
    this.#homeSince.set(node, at);
  }

  /** Undefined: it makes no sense here, and is left out. */
  async #do(step: Step): Promise<string | undefined> {
    const world = this.#world;
    switch (step.step) {
      case "run":
        return this.#run(step);
      case "stranger":
        return this.#stranger(step);
      case "deactivate": {
        if (!world.isPuppetdbUp) return undefined;
        const now = await this.#now();
        const at = step.clock === "now" ? now : now - MINUTES_MS;
        this.#submit({ node: step.node, kind: "deactivate", producer: "admin", at, received: now });
        return "";
      }
      case "purge":
        if (!world.isPuppetdbUp || !this.#model.knows(step.node)) return undefined;
        await this.#compare();
        this.#model.purge(step.node);
        await world.rebuildPuppetdb(this.#model.log);
        return "";
      case "backup":
        this.#backup = [...this.#model.log];
        return "";
      case "restore":
        if (this.#backup === undefined || !world.isPuppetdbUp) return undefined;
        await this.#compare();
        this.#model.restore(this.#backup);
        await world.rebuildPuppetdb(this.#model.log);
        return "";
      case "puppetdb":
        await world.setPuppetdb(step.is === "up");
        return "";
      case "sync":
        return this.#sync(step.who, step.full);
      case "together": {
        if (!world.runs("A") || !world.runs("B")) return undefined;
        const both = [this.#sync("A", step.full), this.#sync("B", step.full)];
        return (await Promise.all(both)).join(" and ");
      }
      case "request":
        return this.#request(step);
      case "register":
        return this.#register(step.who, step.node, step.master);
      case "end":
        return this.#end(step.who, step.node);
      case "hand":
        return this.#hand(step.side, step.node, step.master);
      case "strike": {
        if (!(await world.live(step.side)).has(step.node)) return undefined;
        this.#disturb(({ node }) => node === step.node);
        await world.hand(step.side, step.node, undefined, true);
        return "";
      }
      case "second":
        return this.#second(step.is);
      case "kill":
        return this.#kill(step.during, step.node, step.master);
      case "start":
        if (world.runs("A")) return undefined;
        await this.#start("A");
        return "";
      case "haproxy":
        this.#disturb(({ side }) => side === step.side);
        this.#unseen.add(step.side);
        await world.disturb(step.side, step.how);
        return "";
      case "cut":
        await world.cut(step.side, step.is === "cut");
        return "";
      case "slow":
        return this.#slow(step);
      case "compare":
        await this.#compare();
        return "all agree";
    }
  }

  // ---- PuppetDB's side

  async #run({ node, master, by, clock }: Extract<Step, { step: "run" }>): Promise<string | undefined> {
    const now = await this.#now();
    const model = this.#model;
    const late = Math.min(model.oldest(node), now) - MINUTE_MS;
    const at = {
      now,
      minutes: now - MINUTES_MS,
      queued: now - 1.5 * MINUTE_MS,
      late,
      future: now + YEAR_MS,
      ahead: now + YEAR_MS,
    }[clock];
    const received = { queued: at, ahead: now - MINUTES_MS + MINUTE_MS }[String(clock)] ?? now;
    // An operator asked for a catalog elsewhere: the node itself has run nowhere.
    const isCatalog = by === "catalog";
    if (!this.#world.isPuppetdbUp) {
      if (clock !== "now" || isCatalog) return undefined;
      this.#settle(node, master, now);
      return "PuppetDB is not told";
    }
    // What a run says that is older than a catalog which decided: nothing says which of the two counts.
    if (!isCatalog && Math.min(at, received) < now && model.knows(node) && model.isCatalogOnly(node))
      return undefined;
    // PuppetDB goes by the date, and so forgets facts that it got later: everybody has read them by then.
    if (clock === "ahead") await this.#compare();
    const kinds = by === "both" ? (["facts", "report"] as const) : [by];
    for (const kind of kinds) this.#submit({ node, kind, producer: master, at, received });
    if (!isCatalog) this.#settle(node, master, Math.min(at, received));
    return "";
  }

  async #stranger({ node, by }: Extract<Step, { step: "stranger" }>): Promise<string | undefined> {
    if (!this.#world.isPuppetdbUp || !this.#model.knows(node)) return undefined;
    // It takes the place of what PuppetDB had, which everybody has read by then.
    await this.#compare();
    const now = await this.#now();
    this.#submit({ node, kind: by, producer: "bolt.example", at: now, received: now });
    return "";
  }

  // ---- sasori's side

  async #sync(who: Who, full: boolean): Promise<string | undefined> {
    if (!this.#world.runs(who)) return undefined;
    const { outcome, kind, held } = await this.#world.sync(who, { full });
    return `${kind} ${outcome}${held ? ` (${held.reason})` : ""}`;
  }

  async #register(who: Who, node: string, master: string): Promise<string | undefined> {
    if (!this.#world.runs(who)) return undefined;
    const from = await this.#now();
    const { status, body } = await this.#world.call(who, "PUT", `/api/v1/nodes/${node}`, { master });
    const to = await this.#now();
    this.#model.order(node, master, from, to, isInForce(status, body));
    // Until then the gateways ask somebody who has not heard of it.
    if (who === "B") this.#unheard.add(node);
    return String(status);
  }

  async #end(who: Who, node: string): Promise<string | undefined> {
    if (!this.#world.runs(who)) return undefined;
    const { status, body } = await this.#world.call(who, "DELETE", `/api/v1/nodes/${node}`);
    if (isInForce(status, body)) this.#model.end(node);
    this.#disturb((hand) => hand.node === node);
    return String(status);
  }

  async #hand(side: Side, node: string, master: string): Promise<string | undefined> {
    const [here, there] = [await this.#world.live(side), await this.#world.live(side === 0 ? 1 : 0)];
    const before = here.get(node);
    if (before === master) return undefined;
    const isSettled = before === there.get(node) && (before ?? GONE) === this.#model.must(node);
    const isEnded = this.#model.isEnded(node);
    this.#setByHand.add(node);
    await this.#world.hand(side, node, master, before !== undefined);
    await this.#now();
    const evidence = this.#model.hand(node, master);
    this.#disturb((hand) => hand.node === node);
    if (isSettled && !isEnded && !this.#unseen.has(side)) this.#hands.push({ node, side, evidence });
    return `instead of ${before ?? "nothing"}`;
  }

  /** These may be lost before a comparison sees them, or may have been seen already. */
  #disturb(which: (hand: { node: string; side: Side }) => boolean): void {
    this.#hands = this.#hands.filter((hand) => !which(hand));
  }

  async #second(is: "started" | "stopped" | "killed"): Promise<string | undefined> {
    const isThere = this.#world.runs("B");
    if (isThere === (is === "started")) return undefined;
    this.#disturb(() => true);
    this.#hadSecond = true;
    if (is === "started") await this.#start("B");
    else await this.#world.endSasori("B", is === "killed" ? "SIGKILL" : "SIGTERM");
    return "";
  }

  async #start(who: Who): Promise<void> {
    this.#model.restart();
    await this.#world.startSasori(who);
  }

  async #kill(
    during: "rest" | "sync" | "register",
    node: string,
    master: string,
  ): Promise<string | undefined> {
    const world = this.#world;
    if (!world.runs("A")) return undefined;
    this.#disturb(() => true);
    this.#unseen.add(0).add(1);
    if (during === "sync" && world.isPuppetdbUp) {
      const { asked, release } = world.holdPuppetdb("A", true);
      const pass = world.sync("A", {}).catch(() => undefined);
      await Promise.race([asked, pass]);
      await world.endSasori("A", "SIGKILL");
      release();
      await pass;
    } else if (during === "register") {
      const from = await this.#now();
      const order = this.#world.call("A", "PUT", `/api/v1/nodes/${node}`, { master }).then(
        ({ status }) => status === 200,
        () => false,
      );
      await turn();
      await world.endSasori("A", "SIGKILL");
      const isAnswered = await order;
      this.#model.order(node, master, from, await this.#now(), isAnswered);
      return isAnswered ? "answered 200 before" : "not answered";
    } else await world.endSasori("A", "SIGKILL");
    return "";
  }

  async #slow(step: Extract<Step, { step: "slow" }>): Promise<string | undefined> {
    const { who, act, node, stale, meanwhile } = step;
    const world = this.#world;
    if (!world.runs(who) || !world.isPuppetdbUp) return undefined;
    const { asked, release } = world.holdPuppetdb(who, stale);
    const said: string[] = [];
    try {
      const acting =
        act === "end"
          ? world.call(who, "DELETE", `/api/v1/nodes/${node}`).then(({ status }) => String(status))
          : this.#sync(who, act === "full");
      await Promise.race([asked, acting]);
      // It ends what was in force when it was asked for; what comes after it is newer.
      const isEnding = act === "end" && (await Promise.race([acting, asked.then(() => "asked")])) === "asked";
      if (isEnding) this.#model.end(node);
      for (const one of meanwhile) {
        // The same sasori's next pass would wait for this one.
        if (one.step === "sync" && one.who === who) continue;
        const came = await this.#do(one);
        if (came !== undefined) said.push(`${one.step} ${came}`);
      }
      release();
      said.push(String(await acting));
      if (act === "end") this.#disturb((hand) => hand.node === node);
    } finally {
      release();
    }
    return said.join("; ");
  }

  // ---- requests

  async #request(step: Extract<Step, { step: "request" }>): Promise<string> {
    const { side, method, node, where } = step;
    const world = this.#world;
    const model = this.#model;
    if (world.runs("A")) await world.untilHeard();
    // With GATEWAY_REPLAY=all the masters themselves are asked where sasori cannot ask PuppetDB.
    const canTell = world.isPuppetdbUp || this.#setting.replay === "safe";
    const isHeard = world.runs("A") && canTell && !this.#unheard.has(node);
    const route = (await world.live(side)).get(node);
    const home = world.homes.get(node);
    const answer = await world.ask(side, method, node, where);
    this.#requests += 1;
    const { status, servedBy, executions } = answer;
    const said = `${status} ${servedBy} ${answer.route}, executed at ${executions.map(({ master, acted }) => `${master}${acted ? "" : " (404)"}`).join(", ") || "none"}`;
    const wrong: string[] = [];
    const check = (isRight: boolean, what: string) => {
      if (!isRight) wrong.push(`${what}: the map said ${route}, the node is at ${home}; the answer: ${said}`);
    };
    this.#judge(step, { isHeard, route, home }, answer, check);
    if (wrong.length > 0) this.#diverge(step, said, [...wrong, this.#whatIsKnown(node)]);

    if (status !== 200 || executions.length > 1) this.#disturb((hand) => hand.node === node);
    const isStale = route !== undefined && route !== home && model.must(node) === home;
    const isReached = world.gateways[side]?.isCut === false;
    if (isHeard && isReached && isStale && method === "POST" && this.#isTellable(node)) {
      const isRight = async () => (await world.live(side)).get(node) === home;
      await until("", isRight, 5_000).catch(() =>
        this.#diverge(step, said, [
          `after that 404 nobody found out that ${node} is at ${home}`,
          this.#whatIsKnown(node),
        ]),
      );
    }
    return said;
  }

  /** PuppetDB would tell where it is, if asked now. */
  #isTellable(node: string): boolean {
    const isData = this.#model.evidence(node).every(({ kind }) => kind === "puppetdb");
    return this.#world.isPuppetdbUp && !this.#model.behind && isData;
  }

  #judge(
    { method, node, where }: Extract<Step, { step: "request" }>,
    { isHeard, route, home }: { isHeard: boolean; route: string | undefined; home: string | undefined },
    { status, servedBy, executions }: Answer,
    check: (isRight: boolean, what: string) => void,
  ): void {
    if (route === undefined) {
      check(
        status === 404 && executions.length === 0,
        "a node that the map does not hold is asked for nowhere",
      );
      return;
    }
    const must = this.#model.must(node);
    const known = new Set([route, ...this.#model.allowed(node)]);
    const acted = executions.filter((one) => one.acted).length;
    const at = new Set(executions.map(({ master }) => master));
    const isPost = method === "POST";
    check(status === 200 || status === 404, "it is answered by a master");
    check(acted <= 1, "nothing is done twice");
    if (isPost && this.#setting.replay === "safe") {
      check(executions.length <= 1, "a POST is executed once");
      check(isDeepStrictEqual([...at], [route]), "a POST is executed by the master that the map names");
    } else if (isHeard) {
      check(
        [...at].every((master) => known.has(master)),
        "no master gets it that nobody has named",
      );
    }
    if (where === NOWHERE) {
      check(status === 404, "what no master has is a 404");
      if (isHeard && must === route) check(at.size === 1, "a 404 of the right master is final");
    } else if (route === home) {
      check(status === 200 && servedBy === home, "the right master's answer is the answer");
    } else if (
      !(isPost && this.#setting.replay === "safe") &&
      isHeard &&
      must === home &&
      this.#isTellable(node)
    ) {
      check(status === 200 && servedBy === home, "a wrong route heals on the request that meets it");
    }
  }

  // ---- comparing

  /** Everything is brought up, every sasori compares everything, and all must agree with the model. */
  async #compare(): Promise<void> {
    const world = this.#world;
    await world.setPuppetdb(true);
    for (const side of [0, 1] as const) await world.cut(side, false);
    if (!world.runs("A")) await this.#start("A");
    for (const { node, evidence } of this.#hands.splice(0)) this.#model.confirm(node, evidence);
    const began = Date.now();
    await this.#passes();
    const found = await this.#differences();
    if (found.length > 0) {
      await this.#passes();
      const later = await this.#differences();
      const state =
        later.length === 0 ? "right only after one more round" : "and one more round changes nothing";
      const nodes = new Set([...found, ...later].map((line) => line.split(" ")[0] ?? ""));
      this.#diverge({ step: "compare" }, state, [
        ...found,
        ...Array.from(nodes, (node) => this.#whatIsKnown(node)),
      ]);
    }
    await this.#expectNothingLearned();
    const file = await world.file();
    for (const node of this.#model.nodes)
      this.#model.settle(node, file.get(node) ?? GONE, world.runs("B") ? began : undefined);
    this.#model.comparedAt = began;
    this.#unseen.clear();
    this.#unheard.clear();
    this.#compared += 1;
  }

  /** Reading is not writing: a request teaches nobody what is no change. Of two sasoris each learns from the other. */
  async #expectNothingLearned(): Promise<void> {
    if (this.#hadSecond) return;
    const { body } = await this.#world.call("A", "GET", "/api/v1/nodes?source=learned");
    const learned = (body as { nodes: { certname: string }[] }).nodes.map(({ certname }) => certname);
    const wrong = learned.filter((node) => !this.#setByHand.has(node));
    if (wrong.length > 0)
      this.#diverge({ step: "compare" }, "", [
        `sasori keeps as learned what nobody has changed: ${wrong.join(", ")}`,
      ]);
  }

  /** Full passes of all; where there are two, what one has found out the other has to hear. */
  async #passes(): Promise<void> {
    const { running } = this.#world;
    for (let round = 1; round <= running.length; round += 1)
      for (const who of running) await this.#fullPass(who);
  }

  /** Approves the removals that are held, if they are right. Moves back are left alone: they stay held. */
  async #fullPass(who: Who): Promise<void> {
    for (let tries = 1; ; tries += 1) {
      const report = await this.#world.sync(who, { full: true });
      if (report.outcome === "done") return;
      if (report.held !== undefined) {
        const { id, reason, samples } = report.held;
        const removed = samples.filter((node) => this.#model.allowed(node).has(GONE));
        const back = samples.filter((node) => !removed.includes(node));
        const wrong = back.filter((node) => !this.#model.isStepBack(node));
        if (wrong.length > 0)
          this.#diverge({ step: "compare" }, reason, [
            `${who} holds what should not wait: ${wrong.join(", ")}`,
            ...wrong.map((node) => this.#whatIsKnown(node)),
          ]);
        if (!reason.includes("would be removed")) return;
        // One approval is for all of it.
        for (const node of samples) this.#model.approve(node);
        await this.#world.sync(who, { approve: id });
      } else if (tries === TRIES) {
        const failures = [report.source, ...report.targets].flatMap(({ failure }) => failure?.message ?? []);
        this.#diverge({ step: "compare" }, "", [`a full pass of ${who} fails: ${failures.join("; ")}`]);
      }
    }
  }

  async #differences(): Promise<string[]> {
    const world = this.#world;
    const maps = {
      "the file": await world.file(),
      "HAProxy 1": await world.live(0),
      "HAProxy 2": await world.live(1),
    };
    const found: string[] = [];
    for (const node of NODES) {
      const has = Object.entries(maps).map(([name, map]) => [name, map.get(node) ?? GONE] as const);
      const places = new Set(has.map(([, where]) => where));
      const allowed = this.#model.allowed(node);
      if (places.size === 1 && [...places].every((where) => allowed.has(where))) continue;
      const list = has.map(([name, where]) => `${where} in ${name}`).join(", ");
      found.push(`${node} must be ${[...allowed].join(" or ")}: it is ${list}`);
    }
    for (const [name, map] of Object.entries(maps))
      for (const node of map.keys())
        if (!NODES.includes(node)) found.push(`${node} is in ${name}: nobody put it there`);
    return found;
  }

  #whatIsKnown(node: string): string {
    const time = (at: number) => (Number.isFinite(at) ? new Date(at).toISOString().slice(5, 23) : "ever");
    const list = this.#model
      .evidence(node)
      .map(
        ({ where, kind, from, to, sure }) =>
          `${where} (${kind}, ${time(from)}${from === to ? "" : ` to ${time(to)}`}${sure ? "" : ", not sure"})`,
      );
    return `evidence of ${node}: ${list.join("; ")}`;
  }

  #diverge(step: Step, said: string, lines: string[]): never {
    this.#tell(step, said);
    throw new Divergence(lines);
  }
}
