import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, test, vi } from "vitest";
import type { PemFiles } from "../src/pem-files.js";
import { BURST_MS, COMMAND_BYTES, payloads, RuntimeSession } from "../src/target/runtime-api.js";
import { patient } from "./support/patience.js";

const soon = () => AbortSignal.timeout(patient(5_000));

/**
 * A scripted stats socket for what a real HAProxy will not do on request. `script` gets each line and returns
 * the reply as it goes over the wire; undefined means to say nothing. The two opening commands are answered. Every reply
 * takes `awayMs`, those to the opening commands `openingMs`.
 */
async function withScript<T>(
  script: (line: string, socket: net.Socket) => string | undefined,
  use: (endpoint: { name: string; connect: { path: string } }, lines: string[]) => Promise<T>,
  awayMs?: number,
  openingMs = awayMs,
): Promise<T> {
  const folder = await mkdtemp(path.join(tmpdir(), "sasori-script-"));
  const lines: string[] = [];
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    let text = "";
    socket.on("error", () => undefined);
    socket.on("data", (chunk) => {
      text += chunk;
      for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
        const line = text.slice(0, end);
        text = text.slice(end + 1);
        const opening = line === "prompt" || line.startsWith("set severity-output");
        if (!opening) lines.push(line);
        const reply = opening ? "\n> " : script(line, socket);
        const answer = () => void (reply !== undefined && !socket.destroyed && socket.write(reply));
        const after = opening ? openingMs : awayMs;
        if (after === undefined) answer();
        else setTimeout(answer, after);
      }
    });
  });
  const socketPath = path.join(folder, "admin.sock");
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  try {
    return await use({ name: "scripted", connect: { path: socketPath } }, lines);
  } finally {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
    await rm(folder, { recursive: true });
  }
}

describe("a Runtime API session", () => {
  test("rejects every waiting command when the connection ends in the middle of a reply", () =>
    withScript(
      (line, socket) => {
        if (line === "show map #0") socket.end("0x1 a m1\n0x2 b m");
        return undefined;
      },
      async (endpoint) => {
        const session = await RuntimeSession.open(endpoint, soon());
        const seen: string[] = [];
        const outcomes = await Promise.allSettled([
          session.lines("show map #0", (line) => seen.push(line)),
          session.ask("show info"),
          session.run("del map #0 a"),
        ]);
        for (const outcome of outcomes) {
          expect(outcome).toMatchObject({ status: "rejected", reason: { code: "HAPROXY_UNREACHABLE" } });
        }
        expect(outcomes[0]).toMatchObject({
          reason: { message: expect.stringContaining("3 replies missing") },
        });
        await expect(session.ask("show info")).rejects.toMatchObject({ code: "HAPROXY_UNREACHABLE" });
      },
    ));

  test("gives up at the deadline when HAProxy stalls", () =>
    withScript(
      () => undefined,
      async (endpoint) => {
        const deadline = new AbortController();
        const session = await RuntimeSession.open(endpoint, deadline.signal);
        const asked = session.ask("show info");
        deadline.abort(new DOMException("The operation was aborted due to timeout", "TimeoutError"));
        await expect(asked).rejects.toMatchObject({
          code: "HAPROXY_TIMEOUT",
          message: expect.stringContaining("due to timeout"),
        });
      },
    ));

  test.each([
    // A name that is being looked for, as long as one likes.
    { when: "connects", connect: { host: "gateway.example.com", port: 9999, lookup: () => undefined } },
    { when: "waits for the answer", connect: undefined },
  ])("says whether HAProxy was silent while it $when", ({ connect }) =>
    withScript(
      () => undefined,
      async (scripted, lines) => {
        const connecting = vi.spyOn(net, "connect");
        const endpoint = connect === undefined ? scripted : { name: "scripted", connect };
        const opening = RuntimeSession.open(endpoint, soon());
        const socket = connecting.mock.results[0]?.value as net.Socket;
        connecting.mockRestore();
        const asked = opening.then((session) => session.ask("show info"));
        if (connect === undefined) await expect.poll(() => lines).toEqual(["show info"]);
        else await new Promise(process.nextTick); // The session listens from then on.
        socket.emit("timeout"); // What 10 s of silence do.
        await expect(asked).rejects.toMatchObject({
          code: "HAPROXY_TIMEOUT",
          message: expect.stringMatching(
            connect === undefined
              ? /^scripted: no answer to "show info" for 10 s$/
              : /^scripted: no connection within 10 s: .*DNS.*firewall/,
          ),
        });
      },
    ),
  );

  test("says of a connection that ends between two commands that it was closed, and counts no replies", () =>
    withScript(
      (_line, socket) => void socket.end("one\n\n> "),
      async (endpoint) => {
        const connecting = vi.spyOn(net, "connect");
        const session = await RuntimeSession.open(endpoint, soon());
        const socket = connecting.mock.results[0]?.value as net.Socket;
        connecting.mockRestore();
        const closed = once(socket, "close");
        expect(await session.ask("show info")).toBe("one");
        await closed;
        await expect(session.ask("show info")).rejects.toMatchObject({
          code: "HAPROXY_UNREACHABLE",
          message: "scripted: closed the connection, as in a restart or reload",
        });
      },
    ));

  test("puts a reply together from any pieces", () =>
    withScript(
      (_line, socket) => {
        const reply = "0x1 a m1\n0x2 b m2\n\n> ";
        for (const [index, character] of [...reply].entries())
          setTimeout(() => socket.write(character), index);
        return undefined;
      },
      async (endpoint) => {
        const session = await RuntimeSession.open(endpoint, soon());
        const seen: string[] = [];
        await session.lines("show map #0", (line) => seen.push(line));
        expect(seen).toEqual(["0x1 a m1", "0x2 b m2"]);
        session.close();
      },
    ));

  test.each([
    { reply: "[3]: entry not found.\n\n> ", code: "HAPROXY_REPLY", says: "entry not found." },
    {
      reply: "[6]: Unknown command: 'x', but maybe ...\n\n> ",
      code: "HAPROXY_REPLY",
      says: "Unknown command",
    },
    { reply: "something unexpected\n\n> ", code: "HAPROXY_REPLY", says: "something unexpected" },
    { reply: "Permission denied\n\n> ", code: "HAPROXY_PERMISSION", says: 'needs "level admin"' },
    {
      reply: "+ + + [3]: Unknown map identifier.\n\n> ",
      code: "HAPROXY_REPLY",
      says: "Unknown map identifier",
    },
  ])("takes $reply for a failure of a command whose success is silence", ({ reply, code, says }) =>
    withScript(
      () => reply,
      async (endpoint) => {
        const session = await RuntimeSession.open(endpoint, soon());
        const failure = expect.objectContaining({ code, message: expect.stringContaining(says) });
        await expect(session.run("set map #0 a m1")).rejects.toEqual(failure);
        session.close();
      },
    ),
  );

  test("takes a refusal in place of a dump for a failure, not for a map of one line", () =>
    withScript(
      () => "[3]: Unknown map identifier. Please use #<id> or <file>.\n\n> ",
      async (endpoint) => {
        const session = await RuntimeSession.open(endpoint, soon());
        await expect(session.lines("show map #9", () => undefined)).rejects.toMatchObject({
          code: "HAPROXY_REPLY",
        });
        session.close();
      },
    ));

  test.each([
    { workMs: BURST_MS, most: 1 },
    { workMs: 0.08, most: 2 },
    { workMs: 0.005, most: 32 },
  ])(
    "has no more under way, pushing gently, than is a burst: $most with $workMs ms each",
    ({ workMs, most }) => {
      let [waiting, seen] = [0, 0];
      const answerLater = (_: string, socket: net.Socket) => {
        waiting += 1;
        seen = Math.max(seen, waiting);
        setImmediate(() => {
          waiting -= 1;
          socket.write("\n> ");
        });
        return undefined;
      };
      return withScript(answerLater, async (endpoint, lines) => {
        const session = await RuntimeSession.open(endpoint, soon());
        const commands = Array.from({ length: 70 }, (_, index) => ({
          command: `set map #0 n${index} m1`,
          workMs,
        }));
        await session.runAll(commands, "gently");
        expect(lines).toEqual(commands.map(({ command }) => command));
        expect(seen).toBeGreaterThan(0);
        expect(seen).toBeLessThanOrEqual(most);
        session.close();
      });
    },
  );

  test("stops sending at the first refusal and repeats nothing", () =>
    withScript(
      (line) => (line.includes("node40 ") ? "[3]: entry not found.\n\n> " : "\n> "),
      async (endpoint, lines) => {
        const session = await RuntimeSession.open(endpoint, soon());
        const commands = Array.from({ length: 500 }, (_, index) => ({
          command: `set map #0 node${index} m1`,
          workMs: 0,
        }));
        await expect(session.runAll(commands, "at once")).rejects.toMatchObject({ code: "HAPROXY_REPLY" });
        expect(new Set(lines).size).toBe(lines.length);
        expect(lines.length).toBeLessThan(100);
        session.close();
      },
    ));

  /** How many bursts of a gentle push wait for a reply at once. */
  async function burstsAtOnce(awayMs: number, openingMs: number): Promise<number> {
    let [unanswered, most] = [0, 0];
    const script = () => {
      unanswered += 1;
      most = Math.max(most, unanswered);
      setTimeout(() => {
        unanswered -= 1;
      }, awayMs);
      return "\n> ";
    };
    const push = async (endpoint: Parameters<typeof RuntimeSession.open>[0]) => {
      const session = await RuntimeSession.open(endpoint, soon());
      for (let asked = 0; asked < 20; asked += 1) await session.ask("show info"); // This machine may be busy, too.
      const workMs = BURST_MS; // Each is a burst.
      const commands = Array.from({ length: 30 }, (_, index) => ({
        command: `del map #0 n${index}`,
        workMs,
      }));
      await session.runAll(commands, "gently");
      session.close();
    };
    await withScript(script, push, awayMs, openingMs);
    return most;
  }

  test("does not wait for the reply to each burst of a gentle push where HAProxy is far away", async () => {
    expect(await burstsAtOnce(25, 25)).toBeGreaterThan(1);
  });

  test("waits for it where HAProxy is near, and was busy when the connection was opened", async () => {
    expect(await burstsAtOnce(1, 25)).toBe(1);
  });

  test("does not believe an unexpected reply", () =>
    withScript(
      (line) => (line === "show info" ? "one\n\n> two\n\n> " : "\n> "),
      async (endpoint) => {
        const session = await RuntimeSession.open(endpoint, soon());
        expect(await session.ask("show info")).toBe("one");
        await expect(session.ask("show info")).rejects.toMatchObject({ code: "HAPROXY_REPLY" });
      },
    ));

  test("bounds a reply without end", () =>
    withScript(
      (line) => (line === "show info" ? "x".repeat(5 * 1024 * 1024) : undefined),
      async (endpoint) => {
        const session = await RuntimeSession.open(endpoint, soon());
        await expect(session.ask("show info")).rejects.toMatchObject({
          code: "HAPROXY_REPLY",
          message: expect.stringContaining("too long"),
        });
      },
    ));

  test("says what listens there when it is no HAProxy", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-stranger-"));
    const stranger = net.createServer((socket) => socket.resume().end("HTTP/1.1 400 Bad Request\r\n\r\n"));
    const endpoint = { name: "stranger", connect: { path: path.join(folder, "socket") } };
    await new Promise<void>((resolve) => stranger.listen(endpoint.connect.path, resolve));
    await expect(RuntimeSession.open(endpoint, soon())).rejects.toMatchObject({
      code: "HAPROXY_REPLY",
      message: expect.stringMatching(/something else answers there: "HTTP.*SASORI_HAPROXY/),
    });
    await new Promise((resolve) => stranger.close(resolve));
    await rm(folder, { recursive: true });
  });

  test("ends with its signal also while certificates are read", async () => {
    const silent = net.createServer().listen(0, "127.0.0.1");
    await once(silent, "listening");
    const stop = new AbortController();
    const none = { ca: undefined, cert: undefined, key: undefined };
    const files = {
      async current() {
        stop.abort(new Error("told to stop"));
        return none;
      },
    } as unknown as PemFiles;
    const { port } = silent.address() as net.AddressInfo;
    const began = performance.now();
    await expect(
      RuntimeSession.open(
        { name: "gw1", connect: { host: "127.0.0.1", port }, tls: { certname: "gw1.example.com", files } },
        stop.signal,
      ),
    ).rejects.toThrow("gw1: told to stop");
    expect(performance.now() - began).toBeLessThan(patient(2_000));
    silent.close();
  });

  test("rejects where the system refuses the address at once", async () => {
    const connect = { host: "255.255.255.255", port: 9 };
    const error = await new Promise((resolve) => {
      setImmediate(() => RuntimeSession.open({ name: "gw1", connect }, soon()).catch(resolve));
    });
    expect(error).toMatchObject({ code: expect.stringMatching(/^HAPROXY_/) });
  });

  test("names the remedy when nobody is there", async () => {
    const missing = { name: "/nowhere/admin.sock", connect: { path: "/nowhere/admin.sock" } };
    await expect(RuntimeSession.open(missing, soon())).rejects.toMatchObject({
      code: "HAPROXY_UNREACHABLE",
      message: expect.stringContaining("no such socket: start HAProxy"),
    });
  });
});

test("payloads hold every line once, in order, and keep each command within its bound", () => {
  const line = fc.stringMatching(/^[a-z0-9.-]{1,253} [A-Za-z0-9.-]{1,128}$/);
  fc.assert(
    fc.property(
      fc.array(line, { maxLength: 300 }),
      fc.integer({ min: 5, max: 60 }),
      fc.constantFrom("at once" as const, "gently" as const),
      (lines, commandBytes, pace) => {
        const parts = [...payloads(lines, commandBytes, pace)];
        expect(parts.join("")).toBe(lines.map((text) => `${text}\n`).join(""));
        for (const part of parts) {
          expect(part).not.toBe("");
          expect(commandBytes + ` <<\n${part}\n`.length).toBeLessThanOrEqual(COMMAND_BYTES[pace]);
        }
      },
    ),
  );
});
