// Who may be connected to the HTTP API, and how much may be asked at once: an address of our own is open to every program
// of this host, and maybe to a network. Promises: the number of connections is bounded, and a new one takes the place of
// the one that has waited longest without a whole question, or for whom the answer lies ready and is not read; a
// connection's questions are answered one after the other, so that ten thousand sent at once hold up nobody else's.

import type { RequestListener, Server } from "node:http";
import type { Socket } from "node:net";
import type { FastifyReply, FastifyRequest, HookHandlerDoneFunction } from "fastify";
import { MAX_OPEN_FILES } from "../open-files.js";

/** Half of the files that sasori may have open, for HAProxys, PuppetDB and files need some too. */
export const MAX_CONNECTIONS = Math.min(512, Math.floor(MAX_OPEN_FILES / 2));

/** No client that we know sends a question before the last one is answered. */
export const MAX_AHEAD = 32;

export class Connections {
  readonly #all = new Set<Socket>();
  /** Those that sasori owes nothing, the longest first. */
  readonly #waiting = new Set<Socket>();
  /** Of each connection the question that came last: when its answer has gone, and how many wait for theirs. */
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

  /** The rest of what came in one piece on a connection that was ended meanwhile is not looked at: thousands of questions. */
  skipEnded(server: Server): void {
    const [answer] = server.listeners("request") as RequestListener[];
    if (answer === undefined) return;
    server.off("request", answer);
    server.on("request", (question, response) => {
      if (!question.socket.destroyed) answer(question, response);
    });
  }

  /** Its turn has come, when the answers before have gone. */
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

  /** The question is here, whole. */
  readonly begin = async ({ raw: { socket } }: FastifyRequest): Promise<void> => {
    this.#waiting.delete(socket);
  };

  /** The answer is ready; whether it is read is up to the client. */
  readonly end = async ({ raw: { socket } }: FastifyRequest): Promise<void> => {
    if (this.#all.has(socket)) this.#waiting.add(socket);
  };
}
