// Live events (Server-Sent Events), for the page and for scripts.
// Promises: a client that comes back with `Last-Event-ID` gets the events that it missed, or `reset` if they are no longer kept;
// the number of clients is bounded, and a slow one is dropped, so that sasori's memory stays bounded.

import type { ServerResponse } from "node:http";
import { isDeepStrictEqual } from "node:util";
import type { EventName, Status } from "./api-shapes.js";

export const MAX_CLIENTS = 100;
/**
 * Maximum number of clients at one address. All users behind one proxy share an address, and so do all programs of this host.
 */
export const MAX_CLIENTS_OF_ONE = 60;

/** How many events are kept for clients that come back. */
const MAX_EVENTS = 1_000;
const MAX_KEPT_BYTES = 1024 * 1024;

/** How much a client may leave unread before it is dropped. All kept events must fit. */
const MAX_UNREAD_BYTES = 4 * 1024 * 1024;

/** A comment is sent this often. It must be shorter than the time-outs of proxies (mostly a minute in HAProxy). */
const HEARTBEAT_MS = 15_000;
/** How long a client waits before it connects again. */
const RETRY_MS = 2_000;

interface Kept {
  seq: number;
  text: string;
}

/** What of the status is worth an event. Everything else changes in every pass. */
type News = Pick<Status, "state" | "summary" | "troubles">;
const newsOf = ({ state, summary, troubles }: News): News => ({ state, summary, troubles });

export class EventStream {
  /** Names this run of sasori: an id of an earlier one means nothing now. */
  readonly #start = Date.now().toString(36);
  #seq = 0;
  #kept: Kept[] = [];
  #keptBytes = 0;
  /** The clients, each with its address. */
  readonly #clients = new Map<ServerResponse, string>();
  #heartbeat: NodeJS.Timeout | undefined;
  #closed = false;
  /** The status that every client knows; undefined if one of them got another one when it connected. */
  #known: News | undefined;

  get clients(): number {
    return this.#clients.size;
  }

  /** Whether there is room for another client, of this address. */
  hasRoomFor(address: string): boolean {
    if (this.#closed || this.#clients.size >= MAX_CLIENTS) return false;
    let same = 0;
    for (const one of this.#clients.values()) if (one === address) same += 1;
    return same < MAX_CLIENTS_OF_ONE;
  }

  publish(name: EventName, value: unknown): void {
    this.#seq += 1;
    const text = this.#format(name, value);
    this.#kept.push({ seq: this.#seq, text });
    this.#keptBytes += text.length;
    while (this.#kept.length > MAX_EVENTS || this.#keptBytes > MAX_KEPT_BYTES) {
      this.#keptBytes -= this.#kept.shift()?.text.length ?? 0;
    }
    for (const client of this.#clients.keys()) this.#write(client, text);
  }

  /** Sends the status, unless every client knows it. */
  publishStatus(status: News): void {
    const news = newsOf(status);
    if (isDeepStrictEqual(news, this.#known)) return;
    this.#known = news;
    this.publish("status", status);
  }

  /** Takes over a response: what was missed since `lastId`, then `status`, then whatever happens. */
  attach(client: ServerResponse, address: string, lastId: string | undefined, status: News): void {
    this.#clients.set(client, address);
    // During a pass the status may be a passing one. After the pass the other clients know it already, but this one does not.
    if (!isDeepStrictEqual(newsOf(status), this.#known)) this.#known = undefined;
    client.on("close", () => this.#forget(client));
    client.on("error", () => this.#forget(client));
    client.writeHead(200, {
      "content-type": "text/event-stream",
      "cache-control": "no-store",
      "x-accel-buffering": "no",
    });
    this.#write(client, `retry: ${RETRY_MS}\n\n`);
    const missed = lastId === undefined ? [] : this.#since(lastId);
    if (missed === undefined) this.#write(client, this.#format("reset", {}));
    for (const { text } of missed ?? []) this.#write(client, text);
    this.#write(client, this.#format("status", status));
    this.#heartbeat ??= setInterval(() => this.#beat(), HEARTBEAT_MS);
  }

  close(): void {
    this.#closed = true;
    for (const client of this.#clients.keys()) client.end();
    clearInterval(this.#heartbeat);
  }

  /** JSON has no line breaks outside of strings, and escapes those inside: one `data` line. */
  #format(name: EventName, value: unknown): string {
    return `id: ${this.#start}-${this.#seq}\nevent: ${name}\ndata: ${JSON.stringify(value)}\n\n`;
  }

  /** Undefined if it is no longer known what came after this id. */
  #since(id: string): Kept[] | undefined {
    const [, start, digits] = /^([0-9a-z]+)-(\d{1,15})$/.exec(id) ?? [];
    const seq = Number(digits);
    const isOurs = start === this.#start && seq <= this.#seq;
    const oldest = this.#kept[0]?.seq ?? this.#seq + 1;
    if (!isOurs || seq < oldest - 1) return undefined;
    return this.#kept.filter((kept) => kept.seq > seq);
  }

  #beat(): void {
    for (const client of this.#clients.keys()) this.#write(client, ": still here\n\n");
  }

  #write(client: ServerResponse, text: string): void {
    client.write(text);
    if (client.writableLength > MAX_UNREAD_BYTES) client.destroy();
  }

  #forget(client: ServerResponse): void {
    this.#clients.delete(client);
    if (this.#clients.size > 0) return;
    clearInterval(this.#heartbeat);
    this.#heartbeat = undefined;
  }
}
