// Bounds for connections to the HTTP API, because every program of this host can reach it, and maybe a network.
// Promises: the number of connections is bounded. A new one replaces the connection that has been idle for the longest time:
// it has not sent a whole request, or does not read its answer. The requests of one connection are answered one after the
// other, so that ten thousand sent at once do not delay those of others.

import type { RequestListener, Server } from "node:http";
import type { Socket } from "node:net";
import type { FastifyReply, FastifyRequest, HookHandlerDoneFunction } from "fastify";
import { MAX_OPEN_FILES } from "../open-files.js";

/** At most half of the files that sasori may have open. The others are for HAProxy instances, PuppetDB and files. */
export const MAX_CONNECTIONS = Math.min(512, Math.floor(MAX_OPEN_FILES / 2));

/** Requests that a connection may send before the first is answered. We know no client that sends even two. */
export const MAX_AHEAD = 32;

export class Connections {
  readonly #all = new Set<Socket>();
  /** Idle connections, to which sasori owes no answer; the one that is idle for the longest time comes first. */
  readonly #waiting = new Set<Socket>();
  /** For each connection its latest request: `gone` resolves when its answer was sent; `ahead`: how many requests wait. */
  readonly #last = new WeakMap<Socket, { gone: Promise<void>; ahead: number }>();

  /** A connection was made. */
  readonly accept = (socket: Socket): void => {
    this.#all.add(socket);
    this.#waiting.add(socket);
    socket.once("close", () => {
      this.#all.delete(socket);
      this.#waiting.delete(socket);
    });
    if (this.#all.size <= MAX_CONNECTIONS) return;
    const [longest = socket] = this.#waiting;
    longest.destroy();
  };

  /** Ignores what is left of a piece of data, maybe thousands of requests, on a connection that was ended meanwhile. */
  skipEnded(server: Server): void {
    const [answer] = server.listeners("request") as RequestListener[];
    if (answer === undefined) return;
    server.off("request", answer);
    server.on("request", (question, response) => {
      if (!question.socket.destroyed) answer(question, response);
    });
  }

  /** Resolves when its turn has come: the answers before it were sent. */
  readonly queue = (
    { raw: { socket } }: FastifyRequest,
    reply: FastifyReply,
    done: HookHandlerDoneFunction,
  ): void => {
    const before = this.#last.get(socket);
    const ahead = (before?.ahead ?? 0) + 1;
    if (ahead > MAX_AHEAD) {
      socket.destroy();
      return;
    }
    const one = { ahead, gone: new Promise<void>((resolve) => reply.raw.once("close", resolve)) };
    one.gone.then(() => {
      const last = this.#last.get(socket);
      if (last === one) this.#last.delete(socket);
      else if (last !== undefined) last.ahead -= 1;
    });
    this.#last.set(socket, one);
    if (before === undefined) done();
    else before.gone.then(() => done());
  };

  /** The whole request has arrived. */
  readonly begin = async ({ raw: { socket } }: FastifyRequest): Promise<void> => {
    this.#waiting.delete(socket);
  };

  /** The answer is ready; whether it is read is up to the client. */
  readonly end = async ({ raw: { socket } }: FastifyRequest): Promise<void> => {
    if (this.#all.has(socket)) this.#waiting.add(socket);
  };
}
