// The shapes of the HTTP API: what each call takes and answers, as zod schemas. The server validates by them,
// `/openapi.json` is made of them, and the command line and the page take their types from here.
// This file has only shapes. Every time is ISO 8601, every duration is in milliseconds.

import { z } from "zod";
import { PLAN_ID } from "../guard.js";
import { isRemark, MAX_REMARK, SOURCES } from "../node-map.js";

const Time = z.iso.datetime();
const Count = z.number().int().nonnegative();
const Milliseconds = z.number().nonnegative();

export const CertnameText = z.string().describe("a node's name in Puppet's CA");
export const MasterText = z
  .string()
  .describe("the name of a server, or of a backend that is a pool, in HAProxy");
export const SourceName = z
  .enum(SOURCES)
  .describe("where an observation comes from; inherited: found in the file or a live map at start");

/** The reason of a registration, or who made it: one line, as people write it. */
const Remark = z.string().trim().min(1).max(MAX_REMARK).refine(isRemark, "expected one line of text");
const Remarks = {
  reason: Remark.optional().describe("of a registration: what it is for"),
  by: Remark.optional().describe(
    "of a registration: who made it, by their own account; by default the caller's address",
  ),
};

export const FailureShape = z.strictObject({
  code: z.string().describe("an error code of docs/reference.md"),
  message: z.string(),
});

/** `application/problem+json` (RFC 9457): the body of every error. */
export const ProblemShape = z.strictObject({
  type: z.string(),
  status: z.number().int(),
  title: z.string().describe("the error code"),
  detail: z.string(),
});

const ServerState = z
  .enum(["up", "drained", "down"])
  .describe("drained: it still serves the nodes that the map names, and gets no others");

// ---- one node

/** A row of the list of nodes: an assignment. `since` is null for a route whose age nobody knows. */
export const NodeShape = z.strictObject({
  certname: CertnameText,
  master: MasterText,
  source: SourceName,
  since: Time.nullable(),
  ...Remarks,
});

export const NodesQuery = z.strictObject({
  q: z.string().max(253).toLowerCase().optional().describe("part of a certname, in any letter case"),
  master: z.string().max(128).optional().describe("only nodes of this master"),
  source: SourceName.optional().describe("only nodes known from this source, such as registration"),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
  cursor: z.string().max(253).optional().describe("`next` of the page before"),
});

/** A page of the list, by certname. `next` is null on the last page. */
export const NodesShape = z.strictObject({
  nodes: z.array(NodeShape),
  next: z.string().nullable(),
  unroutable: z
    .array(z.strictObject({ certname: CertnameText, producer: z.string() }))
    .optional()
    .describe(
      "on the first page of a search by `q`: matching nodes that have no route, because HAProxy has no server for the producer of their latest submission; at most `limit`",
    ),
});

/** A change of one node's route. `from` is null for a node that is new, `to` for one that was removed. */
export const MoveShape = z.strictObject({
  id: z.number().int().describe("grows with every move since sasori started"),
  at: Time.describe("when sasori put it into the map"),
  certname: CertnameText,
  from: MasterText.nullable(),
  to: MasterText.nullable(),
  source: SourceName.nullable().describe("null for a removal"),
  ...Remarks,
});

export const MovesQuery = z.strictObject({
  certname: z.string().max(253).optional(),
  master: z.string().max(128).optional().describe("moves from or to this master"),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
  before: z.coerce.number().int().optional().describe("only moves with a smaller id: the next page"),
});

/** The newest first. `next` is the `before` of the next page, null on the last one. */
export const MovesShape = z.strictObject({
  moves: z.array(MoveShape),
  next: z.number().int().nullable(),
  kept: Count.describe("how many moves are kept at most; older ones are forgotten"),
});

const DesiredShape = z.strictObject({
  master: MasterText.optional(),
  source: SourceName.optional(),
  since: Time.nullable().optional(),
  ...Remarks,
  puppetdb: z.string().optional().describe("the PuppetDB that it comes from, if several are configured"),
  unroutableProducer: z
    .string()
    .optional()
    .describe("the newest submission came from this producer, for which HAProxy has no server"),
  heldBy: z
    .string()
    .optional()
    .describe("PuppetDB no longer lists the node; its removal waits for the approval of this plan"),
  failure: FailureShape.optional(),
});

/** Where a node goes and why: desired, the file, each live map. `master: null`: it is not in there. */
export const LookupShape = z.strictObject({
  certname: CertnameText,
  desired: DesiredShape,
  file: z.union([
    z.strictObject({ master: z.string().nullable() }),
    z.strictObject({ failure: FailureShape }),
  ]),
  live: z.array(
    z.strictObject({
      haproxy: z.string(),
      master: z.string().nullable().optional(),
      failure: FailureShape.optional(),
    }),
  ),
});

/** A node's whole story: the lookup, its master's health, its home, and its earlier moves, the newest first. */
export const StoryShape = LookupShape.extend({
  health: z
    .array(z.strictObject({ haproxy: z.string(), state: ServerState, up: z.boolean() }))
    .describe("its master, as each HAProxy sees it"),
  home: MasterText.optional().describe("the master that it left while that was down or drained"),
  moves: z.array(MoveShape),
  unsaved: FailureShape.optional().describe(
    "in the answer to a change: why it is not in the state file; a restart of sasori would lose it",
  ),
});

export const RegistrationBody = z.strictObject({ master: MasterText, ...Remarks });

/** In one call. */
export const MAX_REGISTRATIONS = 10_000;

export const RegistrationsQuery = z.strictObject(Remarks);
export const RegistrationsBody = z
  .union([
    z.record(CertnameText, MasterText),
    z.array(z.strictObject({ certname: CertnameText, master: MasterText, ...Remarks })),
  ])
  .describe(`\`{"certname": "master", …}\` or a list, of at most ${MAX_REGISTRATIONS} nodes`);

/** The result of many registrations. */
export const RegistrationsShape = z.strictObject({
  registered: Count,
  lacking: z
    .array(z.strictObject({ target: z.string(), pending: Count, failure: FailureShape.optional() }))
    .describe("targets that do not have all of them yet; the next pass writes them"),
  unsaved: FailureShape.optional().describe("why they are not in the state file; a restart would lose them"),
});

export const DisplacedShape = z.strictObject({
  certname: CertnameText,
  home: MasterText,
  master: MasterText.optional().describe("where it is now"),
});

export const DisplacedQuery = z.strictObject({
  home: z.string().max(128).optional().describe("only nodes that left this master"),
  limit: NodesQuery.shape.limit,
  cursor: NodesQuery.shape.cursor,
});

/** A page of them, by certname. `next` is null on the last page. */
export const DisplacedNodesShape = z.strictObject({
  nodes: z.array(DisplacedShape),
  next: z.string().nullable(),
});

// ---- masters and instances

const MasterKind = z
  .enum(["server", "pool"])
  .describe("pool: a backend of servers, up while one of them is up, drained when those that serve all are");

const MemberShape = z.strictObject({
  name: MasterText,
  host: z.string().describe("name or address in HAProxy's configuration"),
  address: z.string().describe("host:port; empty if HAProxy reaches it by a socket file"),
  state: ServerState,
});

export const ServerShape = MemberShape.extend({
  members: z
    .array(MemberShape)
    .optional()
    .describe("the servers of a pool; its own host is that of one of them"),
  up: z.boolean().describe("it is not down"),
  strayWeight: Count.optional().describe(
    "its weight, if it has one: then HAProxy also sends it requests for other masters' nodes",
  ),
});

/** One master of one HAProxy, as its statistics say now. A limit that is not set is null. */
export const ServerLoadShape = z.strictObject({
  haproxy: z.string(),
  status: z
    .string()
    .describe("HAProxy's own word: UP, DOWN, MAINT, DRAIN, no check, ...; of a pool how many are up"),
  state: ServerState,
  up: z.boolean().describe("it is not down"),
  sessions: Count.describe("requests that it serves now"),
  maxconn: Count.nullable(),
  queue: Count.describe("requests that wait for it now"),
  maxqueue: Count.nullable(),
  requests: Count.describe("requests since HAProxy started"),
  members: z
    .array(MemberShape.pick({ name: true, state: true }).extend({ status: z.string() }))
    .optional()
    .describe("the servers of a pool; the numbers are those of all together"),
});

export const MasterShape = z.strictObject({
  master: MasterText,
  kind: MasterKind,
  nodes: Count,
  share: z.number().describe("of all nodes, 0 to 1"),
  servers: z
    .array(ServerLoadShape)
    .describe("its server, or its pool, in each HAProxy; empty: no HAProxy has one"),
});

/** Masters by number of nodes, then producers without a server, then HAProxy instances that could not be asked. */
export const MastersShape = z.strictObject({
  masters: z.array(MasterShape),
  unroutable: z.array(z.strictObject({ producer: z.string(), nodes: Count })),
  failures: z.array(z.strictObject({ haproxy: z.string(), failure: FailureShape })),
});

/** A target between passes: the map file, or one HAProxy. */
export const TargetShape = z.strictObject({
  target: z.string(),
  kind: z.enum(["file", "haproxy"]),
  inSync: z.boolean().describe("it held the desired map when it was last looked at"),
  pending: Count.describe("changes that it does not have yet"),
  comparedAt: Time.optional().describe("every entry of the live map has been compared since then"),
  version: z.string().optional(),
  servers: z.array(ServerShape).optional(),
  failure: FailureShape.optional(),
});

export const PushShape = z.strictObject({
  at: Time,
  method: z.string().describe("file, incremental or swap"),
  add: Count,
  set: Count,
  del: Count,
  durationMs: Milliseconds,
});

/** One HAProxy: the process, its map, and the last push to it. */
export const InstanceShape = TargetShape.extend({
  process: z.string().nullable().describe("process id and start time; null while it cannot be reached"),
  map: z.string().nullable().describe("version and number of entries of its map, as last seen"),
  lastPush: PushShape.nullable(),
});
export const InstancesShape = z.strictObject({ file: InstanceShape, instances: z.array(InstanceShape) });

// ---- passes and status

const Sample = { count: Count, samples: z.array(z.string()).describe("the first of them") };

/** A pass without its lists of changes. */
export const PassShape = z.strictObject({
  listed: z.boolean().describe("it changed something or failed: it is among `/api/v1/passes`"),
  kind: z.enum(["known", "changes", "full"]),
  dryRun: z.boolean(),
  outcome: z.enum(["done", "failed", "held"]),
  startedAt: Time,
  durationMs: Milliseconds,
  phasesMs: z.record(z.enum(["look", "fetch", "plan", "file", "push"]), Milliseconds),
  source: z.strictObject({
    outcome: z.enum(["done", "failed", "not asked"]),
    submissions: Count,
    failure: FailureShape.optional(),
  }),
  nodes: Count,
  moved: Count,
  learned: Count,
  masters: z.strictObject({
    changes: z.array(
      z.strictObject({
        haproxy: z.string(),
        master: MasterText,
        change: z.enum(["added", "removed", "readdressed"]),
        failure: FailureShape.optional(),
      }),
    ),
    failures: z.array(FailureShape),
  }),
  displaced: Count,
  unroutable: z.strictObject({ nodes: Count, producers: z.record(z.string(), Count) }),
  refused: z.strictObject(Sample),
  withoutProducer: z.strictObject(Sample),
  clocksAhead: z
    .record(z.string(), z.strictObject({ nodes: Count, until: Time }))
    .describe(
      "producers whose clock was ahead: how many nodes they dated later than PuppetDB received them, and the latest date",
    ),
  flapping: z
    .strictObject({ ...Sample, between: z.array(z.tuple([z.string(), z.string()])) })
    .describe("nodes whose facts and reports come from different masters, in every run"),
  held: z
    .strictObject({
      id: z.string(),
      reason: z.string(),
      all: z.literal("/api/v1/plan").describe("the call that lists every change of the plan"),
      ...Sample,
    })
    .optional(),
  approvalUnmatched: z.literal(true).optional(),
  journal: FailureShape.optional(),
  targets: z
    .array(
      z.strictObject({
        target: z.string(),
        outcome: z.enum(["applied", "failed"]),
        add: Count,
        set: Count,
        del: Count,
        failure: FailureShape.optional(),
      }),
    )
    .describe("those that were written, or failed"),
});

/** The passes that changed something or failed, the newest first; quiet ones are not kept. */
export const PassesShape = z.strictObject({ passes: z.array(PassShape) });

export const SyncBody = z
  .strictObject({
    full: z.boolean(),
    dryRun: z.boolean(),
    approve: z.string().regex(PLAN_ID, "expected a plan id, 12 hexadecimal digits"),
  })
  .partial()
  .refine(({ dryRun, approve }) => !dryRun || approve === undefined, "dryRun and approve exclude each other");

export const HeldPlanQuery = z.strictObject({
  master: z.string().max(128).optional().describe("only nodes that this master would lose"),
  limit: z.coerce.number().int().min(1).max(1000).default(100),
  cursor: z.string().max(255).optional().describe("`next` of the page before"),
});

/** A page of the plan that the guard holds, by certname. `next` is null on the last page. */
export const HeldPlanShape = z.strictObject({
  id: z.string().describe("what an approval names; another set of changes has another id"),
  reason: z.string(),
  count: Count.describe("all changes of the plan"),
  masters: z
    .array(z.strictObject({ master: MasterText.nullable(), removed: Count, moved: Count }))
    .describe("what each master would lose; null: entries that are not sasori's"),
  changes: z.array(
    z.strictObject({
      certname: z.string(),
      from: MasterText.nullable(),
      to: MasterText.nullable().describe("null: it would be removed"),
    }),
  ),
  next: z.string().nullable(),
});

/** What one pass did to one target. */
export const TargetReportShape = z.strictObject({
  target: z.string(),
  kind: z.enum(["file", "haproxy"]),
  outcome: z.enum(["unchanged", "planned", "applied", "failed"]),
  add: Count,
  set: Count,
  del: Count,
  changes: z
    .array(z.strictObject({ certname: CertnameText, from: z.string().optional(), to: z.string().optional() }))
    .describe("the first of these changes"),
  learned: Count,
  drift: Count.describe("entries that differed from what sasori last wrote, for no known reason"),
  changedByOthers: z
    .literal(true)
    .optional()
    .describe("somebody else writes to it: another sasori, or a person"),
  method: z.string().optional(),
  durationMs: Milliseconds,
  failure: FailureShape.optional(),
});
export const SyncReportShape = PassShape.omit({ listed: true }).extend({
  targets: z.array(TargetReportShape),
});

/** Something that a person should know: what is wrong, and what to do about it. */
export const TroubleShape = z.strictObject({
  severity: z.enum(["critical", "warning"]),
  code: z
    .string()
    .describe(
      "an error code, or `held`, `unroutable`, `refused`, `displaced`, `down`, `drained`, `weight`, `stalled`, `clock`, `clock_ahead`, `queue`, `standby`, `flapping`, `second_sasori`",
    ),
  where: z.string().describe("puppetdb, the file, an HAProxy, a master"),
  what: z.string(),
  since: Time.optional().describe("when it began, where that is known"),
  remedy: z.string(),
});

/** One PuppetDB, as it was last seen. */
const PuppetdbShape = z.strictObject({
  url: z.string(),
  asked: z.boolean().describe("sasori asks this one of its estate"),
  insteadOf: z.string().optional().describe("the one that it stands in for, which failed"),
  behindMs: Count.optional().describe("how much older its newest submission is than the newest of that one"),
  readAt: Time.optional().describe("when it was last read"),
  newest: Time.optional().describe("the date of the newest submission that was read there"),
  queueDepth: Count.optional().describe("commands that it has received and not stored yet"),
  failure: FailureShape.optional(),
});

export const StatusShape = z.strictObject({
  state: z
    .enum(["starting", "in sync", "catching up", "attention", "failing"])
    .describe("attention: something waits for a person; failing: a part of sasori's work is not done"),
  summary: z.string().describe("the state in one sentence"),
  ready: z.boolean(),
  version: z.string(),
  startedAt: Time,
  nodes: Count,
  troubles: z.array(TroubleShape),
  targets: z.array(TargetShape).describe("the map file first"),
  puppetdbs: z.array(PuppetdbShape).describe("in the order of SASORI_PUPPETDB_URL"),
  lastGoodPoll: Time.nullable().describe("when PuppetDB was last read"),
  longestDelayMs: Count.describe(
    "the longest time within the last minute in which sasori answered no request",
  ),
  hints: z
    .strictObject({ masters: Count, of: Count, silent: z.array(z.string()) })
    .optional()
    .describe(
      "if sasori listens for hints: how many of the masters with nodes sent any within two hours, and the first five that did not",
    ),
  lastPass: PassShape.optional(),
});

/** Text of another replica: one line without control characters, so that it is safe on a terminal. */
const Line = (most: number) => z.string().max(most).refine(isRemark, "expected one line of text");

/** A replica's last word: what it said about itself. */
export const WordShape = z.strictObject({
  version: Line(100),
  startedAt: Time,
  state: StatusShape.shape.state,
  summary: Line(1_000),
  nodes: Count,
  haproxys: z
    .array(z.strictObject({ target: Line(500), inSync: z.boolean(), pending: Count }))
    .describe("its HAProxy instances, without the map file"),
  lastPass: z
    .strictObject({ startedAt: Time, kind: Line(20), outcome: Line(20), durationMs: Milliseconds })
    .nullable(),
});

export const ReplicaShape = WordShape.extend({
  name: z.string(),
  self: z.boolean().describe("the one that answers"),
  silentMs: Count.describe("how long ago it said so"),
});

/** All replicas, by name; without `SASORI_STATE_URL` this one only. */
export const ReplicasShape = z.strictObject({
  shared: z.boolean().describe("`SASORI_STATE_URL` is set"),
  failure: FailureShape.optional().describe("why the database is not in use, or what is wrong in it"),
  replicas: z.array(ReplicaShape),
});

// ---- events (`GET /api/v1/events`, Server-Sent Events)
// `pass`: a Pass that ended, quiet ones too. `moves`: an array of Move, in the order in which they happened.
// `status`: a Status, once at the beginning and whenever its state, summary or troubles change.
// `reset`: what follows `Last-Event-ID` is no longer kept, or more moves happened at once than are sent one by one;
// read everything again.

export const EventName = z.enum(["status", "pass", "moves", "reset"]);

export type Node = z.infer<typeof NodeShape>;
export type Nodes = z.infer<typeof NodesShape>;
export type Move = z.infer<typeof MoveShape>;
export type Moves = z.infer<typeof MovesShape>;
export type Story = z.infer<typeof StoryShape>;
export type HeldPlan = z.infer<typeof HeldPlanShape>;
export type HeldPlanQuery = z.infer<typeof HeldPlanQuery>;
export type Registrations = z.infer<typeof RegistrationsShape>;
export type Word = z.infer<typeof WordShape>;
export type Replica = z.infer<typeof ReplicaShape>;
export type Replicas = z.infer<typeof ReplicasShape>;
export type Displaced = z.infer<typeof DisplacedShape>;
export type DisplacedNodes = z.infer<typeof DisplacedNodesShape>;
export type DisplacedQuery = z.infer<typeof DisplacedQuery>;
export type ServerLoad = z.infer<typeof ServerLoadShape>;
export type MasterRow = z.infer<typeof MasterShape>;
export type Masters = z.infer<typeof MastersShape>;
export type Instance = z.infer<typeof InstanceShape>;
export type Instances = z.infer<typeof InstancesShape>;
export type Pass = z.infer<typeof PassShape>;
export type Trouble = z.infer<typeof TroubleShape>;
export type Status = z.infer<typeof StatusShape>;
export type Lookup = z.infer<typeof LookupShape>;
export type Desired = z.infer<typeof DesiredShape>;
export type TargetRow = z.infer<typeof TargetShape>;
export type EventName = z.infer<typeof EventName>;
export type MovesQuery = z.infer<typeof MovesQuery>;
export type NodesQuery = z.infer<typeof NodesQuery>;
