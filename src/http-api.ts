// The HTTP API: health, metrics, "sync now", and what the command line asks of a running daemon.
// Promises: calls that change something need the token where one is configured; bodies are small and JSON;
// every error is `application/problem+json` with a code of errors.ts.

import { timingSafeEqual } from "node:crypto";
import { readFile } from "node:fs/promises";
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { z } from "zod";
import { type ErrorCode, quote, reason, SasoriError, toFailure } from "./errors.js";
import { type Desired, lookUp } from "./lookup.js";
import type { Metrics } from "./metrics.js";
import { type Certname, parseCertname, parseMaster } from "./node-map.js";
import { PLAN_ID } from "./plan.js";
import type { Resolver } from "./resolve.js";
import type { Sync, SyncParts } from "./sync.js";
import type { SyncReport } from "./sync-report.js";
import type { TargetState } from "./tracked-target.js";

/** The largest request is a plan id; nothing needs more. */
const MAX_BODY_BYTES = 16 * 1024;

const SyncBody = z
  .strictObject({ full: z.boolean(), dryRun: z.boolean(), approve: z.string().regex(PLAN_ID, "a plan id") })
  .partial()
  .refine(({ dryRun, approve }) => !dryRun || approve === undefined, "dryRun and approve exclude each other");

const RegistrationBody = z.strictObject({ master: z.string() });

/** A row of `GET /api/v1/displaced`. */
export interface Displaced {
  certname: string;
  home: string;
  /** Where it is now. */
  master: string | undefined;
}

/** What `GET /api/v1/status` answers. */
export interface Status {
  ready: boolean;
  /** ISO 8601. */
  startedAt: string;
  nodes: number;
  targets: TargetState[];
  /** The last pass, without its lists of changes. */
  lastPass?: Omit<SyncReport, "targets">;
}

export interface ApiParts {
  sync: Sync;
  resolver: Resolver;
  targets: Pick<SyncParts, "file" | "instances">;
  metrics: Metrics;
  tokenFile?: string | undefined;
}

export function buildApi({ sync, resolver, targets, metrics, tokenFile }: ApiParts): FastifyInstance {
  const startedAt = new Date().toISOString();
  const api = Fastify({
    bodyLimit: MAX_BODY_BYTES,
    requestTimeout: 10_000,
    // An idle connection of a browser or a balancer must not keep sasori from stopping.
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 255 },
    frameworkErrors: (error, _request, reply) => problem(reply, error),
  });
  if (tokenFile === undefined) api.addHook("onRequest", refuseForeignPages);
  api.setErrorHandler((error, _request, reply) => problem(reply, error));
  api.setNotFoundHandler((request, reply) =>
    problem(reply, new SasoriError("USAGE", `no such resource: ${request.method} ${request.url}`), 404),
  );

  api.get("/healthz", () => ({ status: "ok" }));
  api.get("/readyz", (_request, reply) => {
    const { served: nodes } = sync;
    const ready = nodes !== undefined;
    return reply.code(ready ? 200 : 503).send({ ready, nodes: nodes ?? 0 });
  });
  api.get("/metrics", async (_request, reply) =>
    reply.type(metrics.registry.contentType).send(await metrics.registry.metrics()),
  );
  api.get("/api/v1/status", () => status(sync, startedAt));
  api.get<{ Params: { certname: string } }>("/api/v1/nodes/:certname", (request) => {
    const certname = parseCertname(request.params.certname);
    return lookUp(certname, desiredOf(sync, certname), targets);
  });
  const afterChange = async (certname: Certname, reply: FastifyReply) => {
    const found = await lookUp(certname, desiredOf(sync, certname), targets);
    const lacking = [found.file, ...found.live].some((target) => "failure" in target);
    return reply.code(lacking ? 502 : 200).send(found);
  };
  // A registration: in every target before the answer; it gives way to PuppetDB's next, newer observation.
  api.put<{ Params: { certname: string } }>("/api/v1/nodes/:certname", async (request, reply) => {
    await authorize(request, tokenFile);
    const certname = parseCertname(request.params.certname);
    const body = RegistrationBody.safeParse(request.body);
    if (!body.success)
      throw new SasoriError("USAGE", `expected {"master": "..."}: ${z.prettifyError(body.error)}`);
    const master = parseMaster(body.data.master);
    const known = sync.servers()?.map(({ name }) => name);
    if (known !== undefined && !known.includes(master)) {
      throw new SasoriError("USAGE", `HAProxy has no server ${quote(master)} (it has: ${known.join(", ")})`);
    }
    await sync.submit({ certname, master, at: Date.now(), source: "registration" });
    return afterChange(certname, reply);
  });
  api.delete<{ Params: { certname: string } }>("/api/v1/nodes/:certname", async (request, reply) => {
    await authorize(request, tokenFile);
    const certname = parseCertname(request.params.certname);
    if (!sync.fleet.own.has(certname)) {
      throw httpError(404, `${certname} has no registration`);
    }
    await sync.withdraw(certname, await resolver.askPuppetdb(certname));
    return afterChange(certname, reply);
  });
  api.get("/api/v1/displaced", () => displaced(sync));
  // Asked by HAProxy, with a client waiting: the owner as text, 404 when nobody knows one.
  api.get<{ Params: { certname: string }; Querystring: { not?: string } }>(
    "/api/v1/resolve/:certname",
    async (request, reply) => {
      const owner = await resolver.owner(parseCertname(request.params.certname), request.query.not);
      return reply
        .code(owner === undefined ? 404 : 200)
        .type("text/plain")
        .send(owner ?? "");
    },
  );
  api.post("/api/v1/sync", async (request) => {
    await authorize(request, tokenFile);
    const body = SyncBody.safeParse(request.body ?? {});
    if (!body.success)
      throw new SasoriError("USAGE", `the body is not a sync request: ${z.prettifyError(body.error)}`);
    return sync.request(body.data);
  });
  return api;
}

function displaced({ fleet }: Sync): Displaced[] {
  return Array.from(fleet.homes, ([certname, home]) => ({
    certname,
    home,
    master: fleet.map.get(certname)?.master,
  }));
}

function status(sync: Sync, startedAt: string): Status {
  const { lastReport } = sync;
  const shown = {
    ready: sync.served !== undefined,
    startedAt,
    nodes: sync.fleet.map.size,
    targets: sync.targets(),
  };
  if (lastReport === undefined) return shown;
  const { targets: _targets, ...lastPass } = lastReport;
  return { ...shown, lastPass };
}

function desiredOf({ fleet }: Sync, certname: Certname): Desired {
  const assignment = fleet.map.get(certname);
  const producer = fleet.unroutable.get(certname)?.producer;
  const held = fleet.verdict.kind === "held" && fleet.verdict.certnames.includes(certname);
  return {
    ...(assignment && { master: assignment.master, source: assignment.source }),
    ...(assignment && { since: assignment.at === 0 ? null : new Date(assignment.at).toISOString() }),
    ...(producer !== undefined && { unroutableProducer: producer }),
    ...(held && fleet.verdict.kind === "held" && { heldBy: fleet.verdict.id }),
  };
}

/**
 * Without a token only programs of this machine may ask. A web page in somebody's browser on this machine is none of
 * them, even if its host name leads here: a browser says so in `Host` or `Origin`. HAProxy's health check sends
 * neither, and heal.lua calls us "sasori".
 */
async function refuseForeignPages({ headers }: FastifyRequest): Promise<void> {
  const names = [headers.host, headers.origin?.replace(/^\w+:\/\//, "")];
  const isHere = (name = "localhost") => /^(localhost|127(\.\d{1,3}){3}|\[::1\]|sasori)(:\d+)?$/.test(name);
  if (!names.every((name) => isHere(name)))
    throw httpError(403, "without SASORI_API_TOKEN_FILE only this machine itself is answered");
}

async function authorize({ headers }: FastifyRequest, tokenFile: string | undefined): Promise<void> {
  if (tokenFile === undefined) return; // Only possible on loopback: the configuration sees to it.
  const token = (await readFile(tokenFile, "utf8").catch(() => "")).trim();
  if (token === "")
    throw httpError(503, "SASORI_API_TOKEN_FILE cannot be read or is empty: nobody is let in");
  const given = Buffer.from((headers.authorization ?? "").replace(/^bearer +/i, ""));
  const wanted = Buffer.from(token);
  // Compared in constant time; the length of the token is no secret.
  if (given.length === wanted.length && timingSafeEqual(given, wanted)) return;
  throw httpError(401, "this call needs the token of SASORI_API_TOKEN_FILE as a bearer token");
}

function httpError(statusCode: number, message: string): SasoriError {
  return Object.assign(new SasoriError("USAGE", message), { statusCode });
}

const STATUS_OF: Partial<Record<ErrorCode, number>> = {
  USAGE: 400,
  STOPPED: 503,
  BUSY: 503,
  PUPPETDB_UNREACHABLE: 502,
  PUPPETDB_STATUS: 502,
  PUPPETDB_BODY: 502,
  PUPPETDB_TLS: 502,
  PUPPETDB_TIMEOUT: 504,
};

function problem(reply: FastifyReply, error: unknown, statusCode?: number): FastifyReply {
  const given = (error as { statusCode?: unknown }).statusCode;
  const isOurs = error instanceof SasoriError;
  const clientError = !isOurs && typeof given === "number" && given < 500;
  const failure = clientError ? { code: "USAGE", message: reason(error) } : toFailure(error);
  const fallback = typeof given === "number" ? given : isOurs ? (STATUS_OF[error.code] ?? 500) : 500;
  const status = statusCode ?? fallback;
  return reply
    .code(status)
    .type("application/problem+json")
    .send(JSON.stringify({ type: "about:blank", status, title: failure.code, detail: failure.message }));
}
