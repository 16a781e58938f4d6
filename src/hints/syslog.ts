// Log lines of puppetservers, as their own syslog appender (logback) sends them. Promises: lines of RFC 3164 and RFC 5424, over
// UDP or, by either framing of RFC 6587, over TCP; only names are taken from them; whatever is too long, comes too often or is
// something else is dropped.

import { createSocket } from "node:dgram";
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import type { ListenAddress } from "../config.js";

/** A certname has at most 253 characters, and the line is otherwise short. */
const MAX_LINE_CHARACTERS = 2_048;
/** More than this without a line break is not a log line. */
const MAX_ENDLESS_CHARACTERS = 64 * 1024;
const MAX_CONNECTIONS = 64;

/** puppetserver has sent facts or a report, which can move a node. A catalog cannot. */
const SUBMITTED =
  /(?:Puppet )?'(?:replace facts|replace_facts|store report|store_report)' command for (\S+) submitted/;

/**
 * A submission that a line reports: the node, and all words before it, one of which is the puppetserver's name. "Puppet" is
 * not such a word, because it is in every line, and in many fleets it is a master's name too.
 */
export interface SubmissionLine {
  certname: string;
  producers: string[];
}

/**
 * `<174>Nov 30 04:13:02 puppet1 puppet1.example.com Puppet 'replace_facts' command for web1.example.com submitted to PuppetDB
 * with UUID ...`, as puppetserver 7.9 sends it. Undefined for every other line.
 */
export function submissionIn(line: string): SubmissionLine | undefined {
  const found = line.length > MAX_LINE_CHARACTERS ? null : SUBMITTED.exec(line);
  if (found === null) return undefined;
  const producers = line.slice(0, found.index).split(/\s+/).slice(0, 16);
  return { certname: found[1] ?? "", producers: producers.filter((word) => word !== "") };
}

/** Listens on UDP and TCP. Returns a function that stops it. Rejects when it cannot listen on the address. */
export async function listenForLines(
  { host, port }: ListenAddress,
  onSubmission: (line: SubmissionLine) => void,
): Promise<{ port: number; stop(): void }> {
  const take = (line: string): boolean => {
    const submission = submissionIn(line);
    if (submission !== undefined) onSubmission(submission);
    return submission !== undefined;
  };
  const tcp = createServer((socket) => readLines(socket, take));
  await once(tcp.listen({ host, port }), "listening");
  const bound = (tcp.address() as { port: number }).port;
  const udp = createSocket({ type: host.includes(":") ? "udp6" : "udp4" });
  udp.on("message", (message) => take(message.toString("latin1")));
  udp.on("error", () => undefined); // Of a single datagram.
  // The connection that was silent for the longest time comes first. A host that lost its power never closes it.
  const sockets = new Set<Socket>();
  tcp.on("connection", (socket) => {
    const heard = (): void => {
      sockets.delete(socket);
      sockets.add(socket);
    };
    heard();
    socket.on("data", heard);
    socket.once("close", () => sockets.delete(socket));
    const [silent] = sockets;
    if (sockets.size > MAX_CONNECTIONS) silent?.destroy();
  });
  const stop = () => {
    tcp.close();
    udp.close();
    for (const socket of sockets) socket.destroy();
  };
  try {
    udp.bind(bound, host);
    await once(udp, "listening");
  } catch (error) {
    tcp.close();
    throw error;
  }
  return { port: bound, stop };
}

/** A line ends with a line feed, or the next one begins with its length: `174 <174>Nov 30 ...` */
const BETWEEN_LINES = /\n|(?=\d{1,5} <\d{1,3}>)/;

/** `take`: whether the line tells of a submission. */
function readLines(socket: Socket, take: (line: string) => boolean): void {
  let rest = "";
  let length = 0;
  socket.setEncoding("latin1");
  socket.on("data", (text: string) => {
    const lines = (rest + text).split(BETWEEN_LINES);
    const last = lines.pop() ?? "";
    length = lines.length > 0 ? last.length : length + text.length;
    if (length > MAX_ENDLESS_CHARACTERS) socket.destroy();
    rest = last.slice(0, MAX_LINE_CHARACTERS + 1); // Enough to see that the line is too long.
    for (const line of lines) take(line);
    // Where lines have no line feed, the end of the last one is not seen before the next one comes.
    if (take(rest)) rest = "";
  });
  socket.on("error", () => undefined);
}
