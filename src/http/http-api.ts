// The HTTP API: what people, the page, the command line, HAProxy and Prometheus ask of a running sasori.
// Promises: requests and answers are checked by the schemas of api-shapes.ts, of which `/openapi.json` is made; calls
// that change something need the token where one is configured; everything is bounded; every error is
// `application/problem+json` with a code of errors.ts.

import { timingSafeEqual } from "node:crypto";
import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { Readable } from "node:stream";
import rateLimit from "@fastify/rate-limit";
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { serializerCompiler, validatorCompiler, type ZodTypeProvider } from "fastify-type-provider-zod";
import { z } from "zod";
import { several } from "../counts.js";
import { type ErrorCode, type Failure, quote, reason, SasoriError, toFailure } from "../errors.js";
import { type Certname, parseCertname } from "../node-map.js";
import type { Resolver } from "../resolve.js";
import type { Sync } from "../sync.js";
import { readSecretFile } from "../whole-file.js";
import {
  CertnameText,
  DisplacedNodesShape,
  DisplacedQuery,
  HeldPlanQuery,
  HeldPlanShape,
  InstancesShape,
  MastersShape,
  MovesQuery,
  MovesShape,
  NodesQuery,
  NodesShape,
  PassesShape,
  RegistrationBody,
  RegistrationsBody,
  RegistrationsQuery,
  RegistrationsShape,
  ReplicasShape,
  StatusShape,
  type Story,
  StoryShape,
  SyncBody,
  SyncReportShape,
} from "./api-shapes.js";
import { Connections } from "./connections.js";
import { type EventStream, MAX_CLIENTS, MAX_CLIENTS_OF_ONE } from "./event-stream.js";
import type { History } from "./history.js";
import { hasKeyTwice } from "./json-keys.js";
import { lacking } from "./lacking.js";
import type { Metrics } from "./metrics.js";
import { answer, describeApi, PROBLEM, TOKEN } from "./openapi.js";
import type { Overview } from "./overview.js";
import { servePage } from "./page-files.js";
import { type Servers, toRegistration, toRegistrations } from "./registrations.js";

/** Enough for a registration with its reason. Only the call for many registrations needs more. */
const MAX_BODY_BYTES = 16 * 1024;
/** Enough for the maximum number of registrations, with the longest names and a reason for each. */
const MAX_REGISTRATIONS_BYTES = 8 * 1024 * 1024;

/** How long a client may take to send a request, headers and body. */
const REQUEST_MS = 10_000;

/**
 * Per client address, separately for reads and for changes. An open page asks a few times a second. A script that registers
 * nodes asks more often.
 */
const MAX_REQUESTS = 2_000;
const REQUESTS_WINDOW_MS = 10_000;

export interface ApiParts {
  sync: Sync;
  overview: Overview;
  history: History;
  events: EventStream;
  resolver: Resolver;
  metrics: Metrics;
  version: string;
  tokenFile?: string | undefined;
}

/** The server, with the types of its schemas. */
type Api = ReturnType<typeof newServer>;

/** Ready to listen. */
export async function buildApi(parts: ApiParts): Promise<FastifyInstance> {
  const api = newServer();
  const methods = rememberRoutes(api);
  const connections = new Connections();
  api.server.on("connection", connections.accept);
  // Another expectation than 100-continue is no reason to refuse a request. Node would answer it by itself, with nothing.
  api.server.on("checkExpectation", (...asked) => api.server.emit("request", ...asked));
  connections.skipEnded(api.server);
  api.addHook("onRequest", connections.queue);
  api.addHook("preHandler", connections.begin);
  api.addHook("onSend", connections.end);
  api.addHook("onRequest", needOneHost);
  if (parts.tokenFile === undefined) api.addHook("onRequest", refuseForeignPages);
  api.setErrorHandler((error, _request, reply) => problem(reply, error));
  await describeApi(api, parts.version);
  await api.register(rateLimit, {
    max: MAX_REQUESTS,
    timeWindow: REQUESTS_WINDOW_MS,
    // Reads and changes have separate limits: many reads must not keep another user of this address from registering a node.
    keyGenerator: ({ ip, method }) => `${["GET", "HEAD"].includes(method) ? "reads" : "writes"} ${ip}`,
    addHeaders: { "x-ratelimit-limit": false, "x-ratelimit-remaining": false, "x-ratelimit-reset": false },
    addHeadersOnExceeding: {
      "x-ratelimit-limit": false,
      "x-ratelimit-remaining": false,
      "x-ratelimit-reset": false,
    },
    errorResponseBuilder: (_request, { after }) =>
      httpError(
        429,
        `more than ${MAX_REQUESTS} requests in ${REQUESTS_WINDOW_MS / 1000} s: ask again in ${after}`,
      ),
  });
  api.setNotFoundHandler({ preHandler: api.rateLimit() }, (request, reply) => {
    const allowed = methods(request.url);
    if (allowed.length === 0)
      return problem(reply, httpError(404, `no such resource: ${quote(request.url)}`));
    reply.header("allow", allowed.join(", "));
    return problem(
      reply,
      httpError(405, `${request.method} is not allowed for ${request.url}; use ${allowed.join(", ")}`),
    );
  });
  addMachineRoutes(api, parts);
  addNodeRoutes(api, parts);
  addFleetRoutes(api, parts);
  servePage(api as unknown as FastifyInstance);
  api.get("/openapi.json", { schema: { hide: true } }, () => api.swagger());
  return api as unknown as FastifyInstance;
}

function newServer() {
  const api = Fastify({
    bodyLimit: MAX_BODY_BYTES,
    requestTimeout: REQUEST_MS,
    // Node would answer a request without Host by itself, with nothing: see needOneHost.
    http: { headersTimeout: REQUEST_MS, connectionsCheckingInterval: 1_000, requireHostHeader: false },
    // An idle connection of a browser or a balancer must not keep sasori from stopping.
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 255 },
    frameworkErrors: (error, _request, reply) => problem(reply as FastifyReply, error),
    clientErrorHandler: refuseUnparsed,
  }).withTypeProvider<ZodTypeProvider>();
  api.setValidatorCompiler(validatorCompiler);
  api.setSerializerCompiler(serializerCompiler);
  api.removeContentTypeParser("text/plain"); // Only JSON is accepted.
  const parse = api.getDefaultJsonParser("error", "error");
  api.addContentTypeParser("application/json", { parseAs: "string" }, (request, text, done) => {
    if (request.headers["content-encoding"] !== undefined)
      return done(httpError(415, "send JSON without content-encoding"));
    // Many clients name the type of a body also where they send none.
    if (text === "") return done(null, undefined);
    parse(request, String(text), (error, body) => {
      const isBad = error === null && hasKeyTwice(String(text), body);
      done(
        isBad ? httpError(400, "a key occurs twice: use each node and each field only once") : error,
        body,
      );
    });
  });
  return api;
}

// ---- what machines ask

function addMachineRoutes(api: Api, { sync, overview, resolver, metrics }: ApiParts): void {
  const tags = ["machines"];
  // HAProxy, Prometheus and supervisors are not rate-limited. resolve has a bound of its own.
  const config = { rateLimit: false as const };
  const Alive = z.strictObject({ status: z.literal("ok") });
  api.get(
    "/healthz",
    {
      config,
      schema: {
        tags,
        summary: "200 while the process runs",
        response: { 200: answer("alive", Alive), default: PROBLEM },
      },
    },
    () => ({ status: "ok" as const }),
  );
  const Readiness = z.strictObject({ ready: z.boolean(), nodes: z.number() });
  api.get(
    "/readyz",
    {
      config,
      schema: {
        tags,
        summary: "200 once an HAProxy serves a map: read from PuppetDB, or the last good one",
        response: { 200: answer("ready", Readiness), 503: answer("not yet", Readiness), default: PROBLEM },
      },
    },
    async (_request, reply) =>
      reply.code(overview.ready ? 200 : 503).send({ ready: overview.ready, nodes: sync.servedNodes }),
  );
  api.get(
    "/metrics",
    {
      config,
      schema: {
        tags,
        summary: "Prometheus metrics",
        response: { 200: answer("the text format", z.string(), "text/plain"), default: PROBLEM },
      },
    },
    async (_request, reply) => reply.type(metrics.registry.contentType).send(await metrics.text()),
  );
  api.get(
    "/api/v1/resolve/:certname",
    {
      config,
      schema: {
        tags,
        summary: "The master of a node. HAProxy asks this when a route was wrong",
        params: NodeParams,
        querystring: z.strictObject({
          not: z.string().optional().describe("the master that said that it does not have the node"),
        }),
        response: {
          200: answer("the name of the master", z.string(), "text/plain"),
          404: answer("nobody knows one", z.string(), "text/plain"),
          default: PROBLEM,
        },
      },
    },
    async (request, reply) => {
      const certname = parseCertname(request.params.certname);
      const owner = await metrics.timeAnswer(() => resolver.owner(certname, request.query.not));
      return reply
        .code(owner === undefined ? 404 : 200)
        .type("text/plain")
        .send(owner ?? "");
    },
  );
}

// ---- nodes

const NodeParams = z.strictObject({ certname: CertnameText });

function addNodeRoutes(api: Api, { sync, overview, history, resolver, tokenFile }: ApiParts): void {
  const tags = ["nodes"];
  const needsToken = { preParsing: (request: FastifyRequest) => authorize(request, tokenFile) };
  const security = [{ [TOKEN]: [] }];
  api.get(
    "/api/v1/nodes",
    {
      schema: {
        tags,
        summary: "The nodes and their masters, ordered by name, page by page",
        querystring: NodesQuery,
        response: {
          200: answer("a page; `next` is the cursor of the next one", NodesShape),
          default: PROBLEM,
        },
      },
    },
    (request) => overview.page(request.query),
  );
  api.get(
    "/api/v1/nodes/:certname",
    {
      schema: {
        tags,
        summary:
          "Where a node goes, and why: desired master, map file, each live map, the master's health, earlier moves",
        params: NodeParams,
        response: {
          200: answer("the whole story, also of an unknown node", StoryShape),
          default: PROBLEM,
        },
      },
    },
    (request) => overview.story(parseCertname(request.params.certname)),
  );
  const changed = {
    200: answer("every target has it", StoryShape),
    502: answer(
      "in force, but some target could not be written yet, or it is not in the state file (`unsaved`); the next pass writes it",
      StoryShape,
    ),
    default: PROBLEM,
  };
  const afterChange = async (certname: Certname) => {
    const { unsaved } = sync;
    const story: Story = {
      ...(await overview.story(certname)),
      ...(unsaved && { unsaved: losable(unsaved) }),
    };
    return { code: unsaved || lacking(story) > 0 ? (502 as const) : (200 as const), story };
  };
  api.put(
    "/api/v1/nodes/:certname",
    {
      ...needsToken,
      schema: {
        tags,
        security,
        summary: "Register a node with a master, until PuppetDB has a newer observation",
        params: NodeParams,
        body: RegistrationBody,
        response: changed,
      },
    },
    async (request, reply) => {
      const { master, reason, by = request.ip } = request.body;
      const registration = toRegistration(request.params.certname, master, { reason, by }, serversOf(sync));
      const { certname } = registration;
      // It gets its time when the fleet takes it. So of two registrations at once, the one taken later is newer.
      await sync.submit(registration);
      const { code, story } = await afterChange(certname);
      return reply.code(code).send(story);
    },
  );
  api.put(
    "/api/v1/nodes",
    {
      ...needsToken,
      bodyLimit: MAX_REGISTRATIONS_BYTES,
      schema: {
        tags,
        security,
        summary: "Register many nodes at once, all or none: pushed as one change",
        querystring: RegistrationsQuery.describe("for each node that has no remarks of its own"),
        body: RegistrationsBody,
        response: {
          200: answer("every target has them", RegistrationsShape),
          502: answer(
            "in force, but some target could not be written yet, or they are not in the state file",
            RegistrationsShape,
          ),
          default: PROBLEM,
        },
      },
    },
    async (request, reply) => {
      const { reason, by = request.ip } = request.query;
      const registrations = toRegistrations(request.body, { reason, by }, serversOf(sync));
      await sync.submit(...registrations);
      const { unsaved } = sync;
      const lacking = sync
        .targets()
        .flatMap(({ target, inSync, pending, failure }) =>
          inSync ? [] : [{ target, pending, ...(failure && { failure }) }],
        );
      return reply.code(unsaved || lacking.length > 0 ? 502 : 200).send({
        registered: registrations.length,
        lacking,
        ...(unsaved && { unsaved: losable(unsaved) }),
      });
    },
  );
  api.delete(
    "/api/v1/nodes/:certname",
    {
      ...needsToken,
      schema: {
        tags,
        security,
        summary: "End a registration or learned route: PuppetDB decides again. 404 when there is none",
        params: NodeParams,
        response: changed,
      },
    },
    async (request, reply) => {
      const certname = parseCertname(request.params.certname);
      const own = sync.fleet.own.get(certname);
      if (own === undefined) throw httpError(404, `${certname} has no registration`);
      await sync.withdraw(own, await resolver.withoutRegistration(own));
      const { code, story } = await afterChange(certname);
      return reply.code(code).send(story);
    },
  );
  api.get(
    "/api/v1/displaced",
    {
      schema: {
        tags,
        summary:
          "The nodes that left their master while it was down or drained, and have not come back, page by page",
        querystring: DisplacedQuery,
        response: {
          200: answer("a page; `next` is the cursor of the next one", DisplacedNodesShape),
          default: PROBLEM,
        },
      },
    },
    (request) => overview.displaced(request.query),
  );
  api.get(
    "/api/v1/moves",
    {
      schema: {
        tags,
        summary: "The changes of the map since sasori started, the newest first",
        querystring: MovesQuery,
        response: {
          200: answer("a page; `next` is the `before` of the next one", MovesShape),
          default: PROBLEM,
        },
      },
    },
    (request) => history.moves(request.query),
  );
}

/** The servers that a node may be registered with. Throws a 503 until the servers of an HAProxy are known. */
function serversOf(sync: Sync): Servers {
  const servers = sync.servers();
  const resolve = sync.resolver();
  if (servers === undefined) return { names: undefined, resolve };
  if (servers.length > 0) return { names: new Set(servers.map(({ name }) => name)), resolve };
  const what = "no HAProxy has been reached yet, so its servers are unknown: try again when one is up";
  throw Object.assign(new SasoriError("HAPROXY_UNREACHABLE", what), { statusCode: 503 });
}

/** What follows if a change is not in the state file. The message itself says what to do. */
const losable = ({ code, message }: Failure): Failure => ({
  code,
  message: `it is not in the state file, so a restart of sasori would lose it: ${message}`,
});

// ---- the fleet

function addFleetRoutes(api: Api, { sync, overview, history, events, tokenFile }: ApiParts): void {
  const tags = ["fleet"];
  api.get(
    "/api/v1/status",
    {
      schema: {
        tags,
        summary: "Is everything in sync? If not: why, and what to do",
        response: {
          200: answer("the state, its troubles, the targets, the last pass", StatusShape),
          default: PROBLEM,
        },
      },
    },
    () => overview.status,
  );
  api.get(
    "/api/v1/masters",
    {
      schema: {
        tags,
        summary: "The masters: their nodes, and their load in each HAProxy",
        response: { 200: answer("those with the most nodes first", MastersShape), default: PROBLEM },
      },
    },
    () => overview.masters(),
  );
  api.get(
    "/api/v1/instances",
    {
      schema: {
        tags,
        summary: "The map file and every HAProxy: version, pending changes, last push",
        response: { 200: answer("all of them", InstancesShape), default: PROBLEM },
      },
    },
    () => overview.instances,
  );
  api.get(
    "/api/v1/replicas",
    {
      schema: {
        tags,
        summary: "Each replica that shares the state database: what it said last, and when",
        response: {
          200: answer("all of them; without a shared database only this one", ReplicasShape),
          default: PROBLEM,
        },
      },
    },
    () => overview.replicas,
  );
  api.get(
    "/api/v1/passes",
    {
      schema: {
        tags,
        summary: "The last passes that changed something or failed, the newest first",
        response: { 200: answer("a hundred at most", PassesShape), default: PROBLEM },
      },
    },
    () => ({ passes: history.passes }),
  );
  const nothingHeld = "nothing is held: no plan waits for approval";
  api.get(
    "/api/v1/plan",
    {
      schema: {
        tags,
        summary: "The complete plan that the guard holds, page by page. 404 if nothing is held",
        querystring: HeldPlanQuery,
        response: {
          200: answer("a page; `next` is the cursor of the next one", HeldPlanShape),
          404: PROBLEM,
          default: PROBLEM,
        },
      },
    },
    async (request) => {
      const plan = await overview.heldPlan(request.query);
      if (plan === undefined) throw httpError(404, nothingHeld);
      return plan;
    },
  );
  api.get(
    "/api/v1/plan.txt",
    {
      schema: {
        tags,
        summary: "The same as text, one change per line: certname, from, to",
        response: {
          200: answer("all of it", z.string(), "text/plain"),
          404: PROBLEM,
          default: PROBLEM,
        },
      },
    },
    async (_request, reply) => {
      const { verdict } = sync.fleet;
      if (verdict.kind !== "held") throw httpError(404, nothingHeld);
      reply.header("content-disposition", `attachment; filename="plan-${verdict.id}.txt"`);
      return reply.type("text/plain; charset=utf-8").send(Readable.from(overview.heldPlanText()) as never);
    },
  );
  api.post(
    "/api/v1/sync",
    {
      preParsing: (request) => authorize(request, tokenFile),
      schema: {
        tags,
        security: [{ [TOKEN]: [] }],
        summary: "Runs one pass now. `approve` lets a held plan through",
        body: SyncBody.nullish(),
        response: {
          200: answer("what the pass did, and what failed", SyncReportShape),
          default: PROBLEM,
        },
      },
    },
    (request) => sync.request(request.body ?? {}),
  );
  api.addHook("preClose", async () => events.close());
  api.get(
    "/api/v1/events",
    {
      exposeHeadRoute: false,
      schema: {
        tags,
        summary: "Live events (Server-Sent Events): `status`, `pass`, `moves`, `reset`",
        description:
          "`status`: a Status, first and whenever its state, summary or troubles change. `pass`: a Pass that ended. `moves`: an array of Move. `reset`: too much happened to send one by one: read everything again. `Last-Event-ID` brings what was missed.",
        headers: z.object({ "last-event-id": z.string().optional() }),
        response: {
          200: answer("a stream that does not end", z.string(), "text/event-stream"),
          default: PROBLEM,
        },
      },
    },
    async (request, reply) => {
      if (!events.hasRoomFor(request.ip)) {
        reply.header("retry-after", "10");
        const what = `${MAX_CLIENTS} clients listen already, or ${MAX_CLIENTS_OF_ONE} at ${request.ip}`;
        throw new SasoriError("BUSY", `${what}: end some, or try again later`);
      }
      reply.hijack();
      events.attach(reply.raw, request.ip, request.headers["last-event-id"], overview.status);
      return reply;
    },
  );
}

// ---- who may ask

/** RFC 9112, 3.2. With two of them, this server and a proxy before it could each believe another one. */
async function needOneHost({ raw: { rawHeaders, httpVersion } }: FastifyRequest): Promise<void> {
  const names = rawHeaders.filter((_, index) => index % 2 === 0);
  const hosts = names.filter((name) => /^host$/i.test(name)).length;
  if (hosts === 1 || (hosts === 0 && httpVersion === "1.0")) return;
  throw httpError(400, `a request has one Host header; this one has ${hosts}`);
}

/**
 * Without a token only programs on this machine may ask. A web page in a browser on this machine may not, except ours. That
 * also holds if its host name was made to lead here, or if another program serves it on another port. A browser tells where a
 * request comes from: in `Host`; in `Origin`, if it might change something; and in `Sec-Fetch-Site`, even for an image.
 * Following a link is allowed. HAProxy's health check sends none of these headers. heal.lua sends `localhost`, which DNS
 * cannot change.
 */
async function refuseForeignPages({ headers, method }: FastifyRequest): Promise<void> {
  const { host = "localhost", origin } = headers;
  const site = String(headers["sec-fetch-site"] ?? "none");
  const isHere = /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/.test(host);
  const isOurs = origin === undefined || origin.replace(/^https?:\/\//, "") === host;
  const isAsked = /^(none|same-origin)$/.test(site);
  const isLink = headers["sec-fetch-mode"] === "navigate" && method === "GET";
  if (!isHere || !isOurs || !(isAsked || isLink))
    throw httpError(
      403,
      "without SASORI_API_TOKEN_FILE, only programs on this machine are answered, and no web page but sasori's own",
    );
}

/** Checked before the body is read. */
async function authorize({ headers }: FastifyRequest, tokenFile: string | undefined): Promise<void> {
  if (tokenFile === undefined) return; // The configuration allows this only on loopback.
  const token = (await readSecretFile(tokenFile).catch(() => "")).trim();
  if (token === "")
    throw httpError(
      503,
      "SASORI_API_TOKEN_FILE cannot be read or is empty, so no call that needs a token is accepted",
    );
  const given = Buffer.from((headers.authorization ?? "").replace(/^bearer +/i, ""));
  const wanted = Buffer.from(token);
  // Compared in constant time; the length of the token is no secret.
  if (given.length === wanted.length && timingSafeEqual(given, wanted)) return;
  throw httpError(401, "this call needs the token of SASORI_API_TOKEN_FILE as a bearer token");
}

// ---- errors

/** Returns a function that tells the methods of a path. Without it fastify answers 404 where 405 is right. */
function rememberRoutes(api: Api): (url: string) => string[] {
  const routes: { method: string; path: RegExp }[] = [];
  api.addHook("onRoute", ({ method, url, schema }) => {
    // A misspelt parameter is refused, not ignored.
    if (schema && url.startsWith("/api/")) schema.querystring ??= z.strictObject({});
    const path = new RegExp(`^${url.replaceAll(".", "\\.").replace(/:\w+/g, "[^/]+")}$`);
    for (const one of [method].flat()) routes.push({ method: one, path });
  });
  return (url) => {
    const asked = url.replace(/[?#].*$/s, "");
    return [...new Set(routes.flatMap(({ method, path }) => (path.test(asked) ? [method] : [])))];
  };
}

function httpError(statusCode: number, message: string): SasoriError {
  return Object.assign(new SasoriError(statusCode === 429 ? "BUSY" : "USAGE", message), { statusCode });
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
  PROBE_TIMEOUT: 504,
};

function problem(reply: FastifyReply, error: unknown): FastifyReply {
  const { status, code, detail } = judge(error);
  if (status === 401) reply.header("www-authenticate", "Bearer");
  return reply
    .code(status)
    .type("application/problem+json")
    .send(problemText(status, code, detail));
}

function judge(error: unknown): { status: number; code: ErrorCode; detail: string } {
  const { statusCode, validation } = error as { statusCode?: unknown; validation?: unknown };
  const given = typeof statusCode === "number" ? statusCode : undefined;
  if (error instanceof SasoriError) {
    return { status: given ?? STATUS_OF[error.code] ?? 500, code: error.code, detail: error.message };
  }
  if (given === undefined || given >= 500) {
    const { code, message } = toFailure(error);
    const { cause } = error as { cause?: unknown };
    return { status: 500, code, detail: cause === undefined ? message : `${message}: ${reason(cause)}` };
  }
  if (given === 415)
    return { status: given, code: "USAGE", detail: "send JSON with content-type: application/json" };
  const detail = Array.isArray(validation) ? explain(error as Invalid) : reason(error);
  return { status: given, code: "USAGE", detail };
}

/** What fastify throws if a request does not fit its schema: zod's issues. */
interface Invalid {
  validation: Misfit[];
  validationContext?: string;
}

interface Misfit {
  instancePath: string;
  message?: string;
  /** If the schema allows several forms: the issues of each. */
  params?: { errors?: { path: PropertyKey[]; message: string }[][] };
}

function explain({ validation, validationContext = "request" }: Invalid): string {
  const where = validationContext === "querystring" ? "query" : validationContext;
  const say = ({ instancePath, message }: Misfit) =>
    `${where}${instancePath === "/" ? "" : instancePath}: ${message}`;
  return several(validation.flatMap(ofMeantForm).map(say));
}

/** What is wrong with the form that was meant, that is the one which fits as a whole. */
function ofMeantForm(misfit: Misfit): Misfit[] {
  const forms = misfit.params?.errors;
  if (forms === undefined) return [misfit];
  const meant = forms.find((issues) => issues.every(({ path }) => path.length > 0));
  if (meant === undefined)
    return [{ ...misfit, message: forms.flatMap(([issue]) => issue?.message ?? []).join(", or ") }];
  return meant.map(({ path, message }) => ({ instancePath: `/${path.join("/")}`, message }));
}

function problemText(status: number, title: ErrorCode, detail: string): string {
  return JSON.stringify({ type: "about:blank", status, title, detail });
}

/** Answers what Node's parser refuses before it becomes a request: too many headers, no HTTP at all, too slow. */
function refuseUnparsed(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) return void socket.destroy();
  const tooMuch = error.code === "HPE_HEADER_OVERFLOW";
  const status = tooMuch ? 431 : error.code === "ERR_HTTP_REQUEST_TIMEOUT" ? 408 : 400;
  const detail = tooMuch ? "the headers are larger than 16 KiB together" : reason(error);
  const text = problemText(status, "USAGE", detail);
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\ncontent-type: application/problem+json\r\ncontent-length: ${Buffer.byteLength(text)}\r\nconnection: close\r\n\r\n${text}`,
  );
  socket.destroySoon(); // Otherwise a client that keeps sending, byte by byte, would keep it open.
}
