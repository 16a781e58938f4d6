// A demo master: stands in for a puppetserver and for the API that operators' tools call on it. Nodes check in
// here, PuppetDB is told as the real one tells it, and a request for a node that is not here is a 404: by that
// HAProxy sees that a route is wrong.
// What goes through the gateway names the node by the header X-Node-Name; the rest is for nodes and people.

import { randomUUID } from "node:crypto";
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import { Command, Option } from "commander";
import type { FastifyRequest } from "fastify";
import { Agent as Connections } from "undici";
import { z } from "zod";
import type { ListenAddress } from "../src/config.js";
import { quote, reason } from "../src/errors.js";
import { type Certname, isCertname } from "../src/node-map.js";
import { COMMANDS, isNodeCommand } from "./agent.js";
import {
  ask,
  HttpError,
  isProgram,
  listen,
  listenOption,
  mustAsk,
  newServer,
  parseListen,
  parseUrl,
  type RunningServer,
  serveUntilSignal,
} from "./http.js";

export interface MasterOptions {
  /** Its certname: the producer in PuppetDB, and the name of its server in HAProxy. */
  name: string;
  listen: ListenAddress;
  puppetdbUrl: string;
  /** PEM files for a PuppetDB on TLS. */
  puppetdbCert?: string | undefined;
  puppetdbKey?: string | undefined;
  puppetdbCa?: string | undefined;
  /** sasori's SASORI_SYSLOG_LISTEN. */
  hintsTo?: ListenAddress | undefined;
}

interface RegisteredNode {
  certname: Certname;
  /** Where a command can be run on the node; null for one that was registered by hand without it. */
  callback: string | null;
  since: string;
}

type NodeRequest = FastifyRequest<{ Params: { certname: string } }>;

const CheckIn = z
  .object({
    callback: z
      .url({ protocol: /^https?$/ })
      .nullable()
      .default(null),
  })
  .prefault({});

/** Serves one master, without nodes at first. Rejects when the address is taken. */
export async function startMaster(options: MasterOptions): Promise<RunningServer> {
  const { name } = options;
  const nodes = new Map<Certname, RegisteredNode>();
  const submit = submitter(options);
  const tell = teller(options);
  const app = newServer();

  /** The node is here from now on, but only if PuppetDB was told: otherwise the check-in fails, as with Puppet. */
  const register = async (request: NodeRequest): Promise<RegisteredNode> => {
    const certname = certnameOf(request.params.certname);
    const checkIn = CheckIn.safeParse(request.body ?? undefined);
    if (!checkIn.success) throw new HttpError(400, "body_invalid", z.prettifyError(checkIn.error));
    await submit("replace_facts", 5, certname, { values: { kernel: "Linux", servername: name } });
    tell(certname);
    const known = nodes.get(certname);
    const callback = checkIn.data.callback ?? known?.callback ?? null;
    const node = { certname, callback, since: known?.since ?? new Date().toISOString() };
    nodes.set(certname, node);
    return node;
  };
  const find = (certname: Certname): RegisteredNode => {
    const node = nodes.get(certname);
    if (node !== undefined) return node;
    throw new HttpError(404, "not_my_node", `${certname} is not a node of ${name}`);
  };

  // What an agent does.
  app.post("/puppet/v3/catalog/:certname", async (request: NodeRequest) => {
    const { certname } = await register(request);
    const version = String(Math.floor(Date.now() / 1000));
    await submit("replace_catalog", 9, certname, { ...runIds(), version, edges: [], resources: [] });
    return { name: certname, version, resources: [], edges: [] };
  });
  app.put("/puppet/v3/report/:certname", async (request: NodeRequest) => {
    const { certname } = find(certnameOf(request.params.certname));
    await submit("store_report", 8, certname, { ...runIds(), ...unchangedReport() });
    return { certname };
  });

  // The master's own API.
  app.get("/status/v1/simple", (_request, reply) => reply.type("text/plain").send("running"));
  app.get("/nodes", () => [...nodes.values()].sort((a, b) => (a.certname < b.certname ? -1 : 1)));
  app.get("/nodes/:certname", (request: NodeRequest) => find(certnameOf(request.params.certname)));
  app.put("/nodes/:certname", register);
  app.delete("/nodes/:certname", (request: NodeRequest) => {
    const node = find(certnameOf(request.params.certname));
    nodes.delete(node.certname);
    return node;
  });

  // What comes through the gateway.
  app.get("/", (request) => {
    const { certname, since } = find(namedNode(request));
    return { node: certname, master: name, since };
  });
  app.post("/run", async (request) => {
    const { certname, callback } = find(namedNode(request));
    const command = (request.body as { command?: unknown } | undefined)?.command;
    if (!isNodeCommand(command)) {
      throw new HttpError(400, "command_unknown", `"command" must be one of: ${COMMANDS.join(", ")}`);
    }
    if (callback === null)
      throw new HttpError(409, "no_callback", `${certname} was registered without a callback`);
    const answer = await ask("POST", callback, { command }).catch((error) => {
      throw new HttpError(502, "node_unreachable", `${certname}: ${reason(error)}`);
    });
    if (answer.status !== 200)
      throw new HttpError(502, "node_failed", `${certname} answered ${answer.status}`);
    return { node: certname, master: name, command, ...(answer.body as object) };
  });
  return listen(app, options.listen);
}

function certnameOf(text: string): Certname {
  if (isCertname(text)) return text;
  throw new HttpError(400, "node_invalid", `${quote(text)} is not a certname`);
}

function namedNode(request: FastifyRequest): Certname {
  const header = request.headers["x-node-name"];
  if (header === undefined)
    throw new HttpError(400, "node_missing", "name the node by the header X-Node-Name");
  return certnameOf(String(header).toLowerCase());
}

/** Submits one command in this master's name and waits until PuppetDB has stored it. */
function submitter(options: MasterOptions) {
  const pem = (file: string | undefined) => (file === undefined ? undefined : readFileSync(file));
  const [cert, key, ca] = [options.puppetdbCert, options.puppetdbKey, options.puppetdbCa].map(pem);
  const dispatcher = new Connections({
    keepAliveTimeout: 1_000,
    connect: { timeout: 2_000, ...(cert && { cert }), ...(key && { key }), ...(ca && { ca }) },
  });
  return async (command: string, version: number, certname: Certname, payload: object): Promise<void> => {
    const parameters = new URLSearchParams({
      command,
      version: String(version),
      certname,
      secondsToWaitForCompletion: "5",
    });
    const whole = {
      certname,
      environment: "production",
      producer: options.name,
      producer_timestamp: new Date().toISOString(),
      ...payload,
    };
    await mustAsk("POST", `${options.puppetdbUrl}/pdb/cmd/v1?${parameters}`, whole, { dispatcher }).catch(
      (error) => {
        throw new HttpError(
          503,
          "puppetdb",
          `PuppetDB did not take ${command} for ${certname}: ${reason(error)}`,
        );
      },
    );
  };
}

/** Tells sasori that facts were submitted, as puppetserver's syslog appender does (docs/hints.md). */
function teller({ name, hintsTo }: MasterOptions): (certname: Certname) => void {
  if (hintsTo === undefined) return () => undefined;
  const socket = createSocket("udp4").unref();
  socket.on("error", () => undefined); // A hint that is lost costs time only.
  return (certname) => {
    const at = new Date().toISOString();
    const line = `<174>1 ${at} ${name} puppetserver - - - Puppet 'replace_facts' command for ${certname} submitted to PuppetDB`;
    socket.send(line, hintsTo.port, hintsTo.host);
  };
}

const runIds = () => ({
  transaction_uuid: randomUUID(),
  catalog_uuid: randomUUID(),
  code_id: null,
  job_id: null,
});

function unchangedReport() {
  const now = new Date().toISOString();
  return {
    puppet_version: "7.23.0",
    report_format: 12,
    configuration_version: "1",
    start_time: now,
    end_time: now,
    cached_catalog_status: "not_used",
    status: "unchanged",
    noop: false,
    noop_pending: false,
    corrective_change: false,
    type: "agent",
    resources: [],
    metrics: [],
    logs: [],
  };
}

if (isProgram(import.meta)) {
  const options = new Command("master")
    .description("A demo master: nodes check in, PuppetDB is told, requests for its nodes are answered.")
    .addOption(
      new Option("--name <certname>", "its name in PuppetDB and HAProxy")
        .env("DEMO_NAME")
        .makeOptionMandatory(),
    )
    .addOption(listenOption("127.0.0.1:8141"))
    .addOption(
      new Option("--puppetdb-url <url>", "PuppetDB")
        .env("SASORI_PUPPETDB_URL")
        .argParser(parseUrl)
        .makeOptionMandatory(),
    )
    .addOption(new Option("--puppetdb-cert <file>", "client certificate, PEM").env("SASORI_PUPPETDB_CERT"))
    .addOption(new Option("--puppetdb-key <file>", "its key, PEM").env("SASORI_PUPPETDB_KEY"))
    .addOption(
      new Option("--puppetdb-ca <file>", "the CA of PuppetDB's certificate, PEM").env("SASORI_PUPPETDB_CA"),
    )
    .addOption(
      new Option(
        "--hints-to <host:port>",
        "tell this sasori of submitted facts, as puppetserver's log can",
      ).argParser(parseListen),
    )
    .parse()
    .opts<MasterOptions>();
  await serveUntilSignal(options.name, () => startMaster(options));
}
