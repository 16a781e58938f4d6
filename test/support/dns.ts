/** A nameserver on loopback that answers for a few names: A and SRV records. All else does not exist (NXDOMAIN). */
import { createSocket } from "node:dgram";
import { once } from "node:events";

const [A, AAAA, SRV, IN] = [1, 28, 33, 1];

export interface Nameserver {
  port: number;
  /** Name to IPv4 address. */
  addresses: Record<string, string>;
  /** Service to its targets. */
  services: Record<string, { name: string; port: number }[]>;
  stop(): Promise<void>;
}

export async function startNameserver(
  records: Pick<Nameserver, "addresses" | "services">,
): Promise<Nameserver> {
  const socket = createSocket("udp4");
  const nameserver: Nameserver = {
    ...records,
    port: 0,
    stop: () => new Promise((resolve) => socket.close(() => resolve())),
  };
  socket.on("message", (query, { port, address }) => socket.send(answerTo(query, nameserver), port, address));
  socket.bind(0, "127.0.0.1");
  await once(socket, "listening");
  nameserver.port = socket.address().port;
  return nameserver;
}

function answerTo(query: Buffer, { addresses, services }: Nameserver): Buffer {
  const labels: string[] = [];
  let at = 12;
  for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
    labels.push(query.toString("latin1", at + 1, at + 1 + length));
    at += 1 + length;
  }
  const type = query.readUInt16BE(at + 1);
  const name = labels.join(".").toLowerCase();
  const question = query.subarray(12, at + 5);
  const address = addresses[name];
  const found: Buffer[] = [];
  if (type === A && address !== undefined) found.push(Buffer.from(address.split(".").map(Number)));
  if (type === SRV) for (const { name: target, port } of services[name] ?? []) found.push(srv(target, port));
  const isKnown = found.length > 0 || (address !== undefined && (type === A || type === AAAA));
  const header = Buffer.alloc(12);
  query.copy(header, 0, 0, 2);
  header.writeUInt16BE(isKnown ? 0x8580 : 0x8583, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(found.length, 6);
  const answers = found.map((content) => {
    const record = Buffer.alloc(12);
    record.writeUInt16BE(0xc00c, 0); // The name of the question.
    record.writeUInt16BE(type, 2);
    record.writeUInt16BE(IN, 4);
    record.writeUInt32BE(1, 6);
    record.writeUInt16BE(content.length, 10);
    return Buffer.concat([record, content]);
  });
  return Buffer.concat([header, question, ...answers]);
}

function srv(target: string, port: number): Buffer {
  const priorityWeightPort = Buffer.alloc(6);
  priorityWeightPort.writeUInt16BE(1, 2);
  priorityWeightPort.writeUInt16BE(port, 4);
  const labels = target
    .split(".")
    .map((label) => Buffer.from(`${String.fromCharCode(label.length)}${label}`));
  return Buffer.concat([priorityWeightPort, ...labels, Buffer.from([0])]);
}
