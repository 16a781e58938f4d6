// The demo's stand-in for PuppetDB: takes the commands that masters submit, answers the queries that sasori
// sends, and refuses anything else with 400, as PuppetDB does. It keeps everything in memory and needs neither
// Java nor PostgreSQL. The contract test runs against it and against the real one.

import { randomUUID } from "node:crypto";
import { Command } from "commander";
import type { FastifyInstance, FastifyReply } from "fastify";
import { z } from "zod";
import type { ListenAddress } from "../src/config.js";
import { reason } from "../src/errors.js";
import { isProgram, listen, listenOption, newServer, type RunningServer, serveUntilSignal } from "./http.js";
import {
  answerQuery,
  type Database,
  type Entity,
  type Page,
  RefusedQuery,
  type Row,
} from "./puppetdb-query.js";

/** What it says to be: the real one that its answers were compared with. */
const VERSION = "7.12.1";

/** The real one keeps reports for 14 days; a demo that runs for a week must not fill the memory. */
const MAX_REPORTS_PER_NODE = 10;

const JSON_TYPE = "application/json;charset=utf-8";
const TEXT_TYPE = "text/plain;charset=utf-8";
const QUERY_PARAMETERS = ["query", "origin", "timeout", "order_by", "limit", "offset"];
const COMMAND_PARAMETERS = [
  "command",
  "version",
  "certname",
  "producer-timestamp",
  "secondsToWaitForCompletion",
];

const Time = z.iso.datetime({ offset: true }).transform((text) => new Date(text).toISOString());
const Submission = z.object({
  certname: z.string().min(1),
  environment: z.string().nullable(),
  producer: z.string().nullable(),
  producer_timestamp: Time,
});
const Facts = Submission.extend({ values: z.record(z.string(), z.unknown()) });
const Catalog = Submission.extend({
  version: z.string(),
  edges: z.array(z.unknown()),
  resources: z.array(z.unknown()),
});
const Report = Submission.extend({ start_time: Time, end_time: Time, status: z.string() });
const Deactivation = z.object({ certname: z.string().min(1), producer_timestamp: Time.optional() });

/** A submission as a row, with the time of its arrival on our clock. */
type Stored<Payload> = Payload & { received: string };

interface StoredNode {
  deactivated: string | null;
  facts?: Stored<z.output<typeof Submission>>;
  catalog?: Stored<z.output<typeof Submission>>;
  /** Newest first. */
  reports: Stored<z.output<typeof Report>>[];
}

/** What was submitted, and the rows that PuppetDB's entities would show of it. */
export class Storage implements Database {
  readonly #nodes = new Map<string, StoredNode>();
  readonly #producers = new Set<string>();

  /** Takes one command. Throws when the payload is not what the command's wire format says. */
  submit(command: string, version: number, payload: unknown, received = new Date().toISOString()): void {
    switch (`${command} v${version}`) {
      case "replace facts v5": {
        const { values, ...facts } = Facts.parse(payload);
        const node = this.#activate(facts);
        if (isCurrent(facts, node.facts)) node.facts = { ...facts, received };
        return;
      }
      case "replace catalog v9": {
        const { edges, resources, version: _, ...catalog } = Catalog.parse(payload);
        const node = this.#activate(catalog);
        if (isCurrent(catalog, node.catalog)) node.catalog = { ...catalog, received };
        return;
      }
      case "store report v8": {
        const report = Report.parse(payload);
        const { reports } = this.#activate(report);
        const older = reports.findIndex((known) => known.producer_timestamp < report.producer_timestamp);
        reports.splice(older < 0 ? reports.length : older, 0, { ...report, received });
        reports.length = Math.min(reports.length, MAX_REPORTS_PER_NODE);
        return;
      }
      case "deactivate node v3": {
        const { certname, producer_timestamp: at = received } = Deactivation.parse(payload);
        const node = this.#node(certname);
        const newest = [node.facts, node.catalog, node.reports[0]].map(
          (known) => known?.producer_timestamp ?? "",
        );
        const stale = newest.some((known) => known > at) || (node.deactivated ?? "") > at;
        if (!stale) node.deactivated = at;
        return;
      }
      default:
        throw new Error(`Unsupported command ${command} version ${version}`);
    }
  }

  isActive(certname: unknown): boolean {
    return this.#nodes.get(String(certname))?.deactivated === null;
  }

  readonly entities: Record<string, Entity> = {
    nodes: {
      activeOnly: true,
      columns: {
        certname: "string",
        deactivated: "opaque", // The real one takes it for text, and then fails to compare it with a time.
        expired: "timestamp",
        facts_timestamp: "timestamp",
        catalog_timestamp: "timestamp",
        report_timestamp: "timestamp",
      },
      rows: () =>
        this.#rows((certname, { deactivated, facts, catalog, reports }) => [
          {
            certname,
            deactivated,
            expired: null,
            facts_timestamp: facts?.received ?? null,
            catalog_timestamp: catalog?.received ?? null,
            report_timestamp: reports[0]?.end_time ?? null, // The agent's clock.
          },
        ]),
    },
    factsets: {
      activeOnly: true,
      columns: { ...PRODUCER_COLUMNS, timestamp: "timestamp" },
      rows: () => this.#rows((_, { facts }) => (facts ? [{ ...facts, timestamp: facts.received }] : [])),
    },
    catalogs: {
      activeOnly: false,
      columns: PRODUCER_COLUMNS,
      rows: () => this.#rows((_, { catalog }) => (catalog ? [catalog] : [])),
    },
    reports: {
      activeOnly: false,
      columns: {
        ...PRODUCER_COLUMNS,
        receive_time: "timestamp",
        start_time: "timestamp",
        end_time: "timestamp",
        status: "string",
        "latest_report?": "flag",
      },
      rows: () =>
        this.#rows((_, { reports }) =>
          reports.map((report, index) => ({
            ...report,
            receive_time: report.received,
            "latest_report?": index === 0,
          })),
        ),
    },
    producers: {
      activeOnly: false,
      columns: { name: "string" },
      rows: () => [...this.#producers].map((name) => ({ name })),
    },
  };

  *#rows(show: (certname: string, node: StoredNode) => Row[]): Iterable<Row> {
    for (const [certname, node] of this.#nodes) yield* show(certname, node);
  }

  #node(certname: string): StoredNode {
    const known = this.#nodes.get(certname);
    if (known !== undefined) return known;
    const node: StoredNode = { deactivated: null, reports: [] };
    this.#nodes.set(certname, node);
    return node;
  }

  /** Whatever a master submits after a deactivation brings the node back. */
  #activate({ certname, producer, producer_timestamp: at }: z.output<typeof Submission>): StoredNode {
    const node = this.#node(certname);
    if (node.deactivated !== null && node.deactivated < at) node.deactivated = null;
    if (producer !== null) this.#producers.add(producer);
    return node;
  }
}

const PRODUCER_COLUMNS = {
  certname: "string",
  environment: "string",
  producer: "string",
  producer_timestamp: "timestamp",
} as const;

type Submitted = { producer_timestamp: string };
const isCurrent = (submitted: Submitted, known: Submitted | undefined): boolean =>
  known === undefined || known.producer_timestamp <= submitted.producer_timestamp;

/** Serves PuppetDB's API, empty at first unless it is given what was stored. Rejects when the address is taken. */
export async function startPuppetdbStandIn(
  address: ListenAddress,
  storage = new Storage(),
): Promise<RunningServer> {
  const app = newServer();
  addQueries(app, storage);
  addCommands(app, storage);
  app.get("/pdb/meta/v1/version", () => ({ version: VERSION }));
  app.get("/pdb/meta/v1/server-time", () => ({ server_time: new Date().toISOString() }));
  app.get("/status/v1/simple", (_request, reply) => reply.type(TEXT_TYPE).send("running"));
  app.get("/status/v1/services/puppetdb-status", () => ({
    service_name: "puppetdb-status",
    service_version: VERSION,
    state: "running",
    status: { "maintenance_mode?": false, queue_depth: 0 },
  }));
  return listen(app, address);
}

function addQueries(app: FastifyInstance, storage: Storage): void {
  app.route<{
    Params: { entity: string };
    Querystring: Record<string, string>;
    Body?: Record<string, unknown>;
  }>({
    method: ["GET", "POST"],
    url: "/pdb/query/v4/:entity",
    handler: (request, reply) => {
      const parameters: Record<string, unknown> = { ...request.query, ...request.body };
      try {
        const unknown = Object.keys(parameters).find((name) => !QUERY_PARAMETERS.includes(name));
        if (unknown !== undefined) throw new RefusedQuery(`Unsupported query parameter '${unknown}'`);
        const rows = answerQuery(
          storage,
          request.params.entity,
          parseQuery(parameters.query),
          parsePage(parameters),
        );
        return reply.type(JSON_TYPE).send(JSON.stringify(rows));
      } catch (error) {
        if (error instanceof RefusedQuery) return reply.code(400).type(TEXT_TYPE).send(error.message);
        throw error;
      }
    },
  });
}

/** A query arrives as text in a URL, and as JSON or text in a body. */
function parseQuery(query: unknown): unknown {
  if (typeof query !== "string") return query;
  if (query === "") return undefined;
  try {
    return JSON.parse(query);
  } catch (error) {
    throw new RefusedQuery(`Json parse error: ${reason(error)}`);
  }
}

const PageParameters = z.object({
  order_by: z.array(z.object({ field: z.string(), order: z.enum(["asc", "desc"]).optional() })).optional(),
  limit: z.coerce.number().optional(),
  offset: z.coerce.number().optional(),
});

function parsePage({ order_by, ...page }: Record<string, unknown>): Page {
  const { data, error } = PageParameters.safeParse({ ...page, order_by: parseQuery(order_by) });
  if (data === undefined) throw new RefusedQuery(`Illegal paging: ${z.prettifyError(error)}`);
  return data;
}

function addCommands(app: FastifyInstance, storage: Storage): void {
  app.post<{ Querystring: Record<string, string> }>("/pdb/cmd/v1", (request, reply) => {
    const { certname = "", secondsToWaitForCompletion: seconds } = request.query;
    const command = (request.query.command ?? "").replaceAll("_", " ");
    const refusal = refuseCommand(command, request.query);
    if (refusal !== undefined) {
      const error = `Command ${JSON.stringify(command)} for certname ${JSON.stringify(certname)} is invalid. ${refusal}`;
      return answer(reply.code(400), { error });
    }
    // As in the real one, 200 means "queued", and a bad payload shows only to those who wait for the outcome.
    const outcome = { uuid: randomUUID(), ...(Number(seconds) > 0 && { processed: true, timed_out: false }) };
    try {
      storage.submit(command, Number(request.query.version), request.body);
      return answer(reply, outcome);
    } catch (thrown) {
      const error = thrown instanceof z.ZodError ? z.prettifyError(thrown) : reason(thrown);
      console.error(`${command} for ${certname} was dropped: ${error}`);
      return Number(seconds) > 0 ? answer(reply.code(503), { ...outcome, error }) : answer(reply, outcome);
    }
  });
}

const OLDEST_VERSIONS: Record<string, number> = {
  "deactivate node": 3,
  "replace catalog": 6,
  "replace facts": 4,
  "store report": 5,
};

/** PuppetDB's checks of the URL, with its words. */
function refuseCommand(command: string, parameters: Record<string, string>): string | undefined {
  const missing = ["command", "version", "certname"].filter((name) => parameters[name] === undefined);
  if (missing.length > 0) return `Command is missing required parameters: ${missing.join(", ")}.`;
  const invalid = Object.keys(parameters).filter((name) => !COMMAND_PARAMETERS.includes(name));
  if (invalid.length > 0) return `Command has invalid parameters: ${invalid.join(", ")}.`;
  if (parameters.certname?.trim() === "") return "Certname must be a non-empty string.";
  const oldest = OLDEST_VERSIONS[command];
  if (oldest === undefined) return `Command must be one of: ${Object.keys(OLDEST_VERSIONS).join(", ")}.`;
  if (!/^\d+$/.test(parameters.version ?? "")) return "Version must be a valid integer.";
  if (Number(parameters.version) >= oldest) return undefined;
  return `Version ${parameters.version} of command ${JSON.stringify(command)} is retired. The minimum supported version is ${oldest}.`;
}

const answer = (reply: FastifyReply, body: object): FastifyReply =>
  reply.type(JSON_TYPE).send(JSON.stringify(body));

if (isProgram(import.meta)) {
  const program = new Command("puppetdb")
    .description("The demo's stand-in for PuppetDB: masters submit to it, sasori asks it. In memory.")
    .addOption(listenOption("127.0.0.1:8085"))
    .parse();
  await serveUntilSignal("PuppetDB stand-in", () => startPuppetdbStandIn(program.opts().listen));
}
