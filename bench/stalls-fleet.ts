// PuppetDB's place in the bench `stalls`: a fleet of any size, its answers made before they are asked for, so that sasori
// gets them as fast as it can read. Run as a program: node stalls-fleet.js PORT NODES.
// `POST /move?count=N` lets N nodes, spread over the fleet, run at another master now. After `POST /list?count=N` only the first
// N are active. After `POST /back` PuppetDB says what it said an hour ago, when each node was at another master.

import { createServer } from "node:http";
import { fileURLToPath } from "node:url";
import { MASTERS } from "./daemon.js";

const HALF_AN_HOUR_MS = 30 * 60_000;
const HOUR_MS = 2 * HALF_AN_HOUR_MS;

/** Of a node by its number. */
export const nameOf = (node: number): string => `node-${String(node).padStart(7, "0")}.example.com`;

class Fleet {
  readonly #moves: Uint8Array;
  readonly #at: Float64Array;
  /** Who moved last, and when. */
  #news: { at: number; nodes: number[] } = { at: 0, nodes: [] };
  /** How many nodes are active. */
  #listed: number;
  #answers: { facts: Buffer; reports: Buffer };

  constructor(nodes: number) {
    this.#moves = new Uint8Array(nodes);
    this.#at = new Float64Array(nodes).fill(Date.now() - HALF_AN_HOUR_MS);
    this.#listed = nodes;
    this.#answers = this.#make();
  }

  list(count: number): void {
    this.#listed = count;
    this.#answers = this.#make();
  }

  back(): void {
    for (const [node, at] of this.#at.entries()) {
      this.#at[node] = at - HOUR_MS;
      this.#moves[node] = ((this.#moves[node] ?? 0) + 1) % MASTERS.length;
    }
    this.#answers = this.#make();
  }

  move(count: number): void {
    const nodes = this.#at.length;
    const moved = Array.from({ length: count }, (_, index) => Math.floor((index * nodes) / count));
    const at = Date.now();
    for (const node of moved) {
      this.#moves[node] = ((this.#moves[node] ?? 0) + 1) % MASTERS.length;
      this.#at[node] = at;
    }
    this.#news = { at, nodes: moved };
    this.#answers = this.#make();
  }

  answer(entity: string, query: string): Buffer | string {
    if (query.includes('"count"')) {
      const count = query.includes('"inactive"') ? 0 : this.#listed;
      return JSON.stringify([{ count }]);
    }
    if (query.includes('"array"')) return "[]";
    const [, since] = /\[">","timestamp","([^"]+)"\]/.exec(query) ?? [];
    if (entity === "factsets" && since !== undefined)
      return this.#news.at > Date.parse(since) ? this.#rows(this.#news.nodes, "facts") : "[]";
    if (entity === "factsets") return this.#answers.facts;
    // The newest of each node, asked once; not those of later, nor of a longer time.
    return entity === "reports" && query.includes("group_by") && query.includes('["not",[">"')
      ? this.#answers.reports
      : "[]";
  }

  #make() {
    const all = Array.from(this.#at.keys()).slice(0, this.#listed);
    return { facts: this.#rows(all, "facts"), reports: this.#rows(all, "reports") };
  }

  #rows(nodes: readonly number[], what: "facts" | "reports"): Buffer {
    const pieces: Buffer[] = [];
    for (let from = 0; from < nodes.length; from += 10_000) {
      const rows = nodes.slice(from, from + 10_000).map((node) => this.#row(node, what));
      pieces.push(Buffer.from(`${from === 0 ? "[" : ","}${rows.join(",")}`));
    }
    return Buffer.concat([...pieces, Buffer.from(pieces.length === 0 ? "[]" : "]")]);
  }

  #row(node: number, what: "facts" | "reports"): string {
    const at = new Date(this.#at[node] ?? 0).toISOString();
    const times =
      what === "facts"
        ? { producer_timestamp: at, timestamp: at }
        : { max: new Date((this.#at[node] ?? 0) - HALF_AN_HOUR_MS / 2).toISOString(), max_2: at };
    const producer = MASTERS[(node + (this.#moves[node] ?? 0)) % MASTERS.length];
    return JSON.stringify({ certname: nameOf(node), producer, ...times });
  }
}

function serve(port: number, fleet: Fleet): void {
  const commands: Record<string, (count: number) => void> = {
    "/move": (count) => fleet.move(count),
    "/list": (count) => fleet.list(count),
    "/back": () => fleet.back(),
  };
  const server = createServer(async (request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? "", "http://localhost");
    let body = "";
    for await (const chunk of request) body += String(chunk);
    const command = commands[pathname];
    if (command !== undefined) {
      command(Number(searchParams.get("count")));
      response.end();
      return;
    }
    if (pathname.startsWith("/pdb/meta/")) {
      response
        .writeHead(200, { "content-type": "application/json" })
        .end(`{"version":"7.12.1","server_time":"${new Date().toISOString()}"}`);
      return;
    }
    const query = body === "" ? (searchParams.get("query") ?? "") : JSON.stringify(JSON.parse(body).query);
    response.writeHead(200, { "content-type": "application/json" });
    response.end(fleet.answer(pathname.split("/").at(-1) ?? "", query));
  });
  server.listen(port, "127.0.0.1");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , port, nodes] = process.argv.map(Number);
  serve(port ?? 0, new Fleet(nodes ?? 0));
}
