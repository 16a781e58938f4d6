// `/openapi.json`: the description of the HTTP API, made of the schemas by which the server itself checks every request
// and every answer. Nothing is described twice.

import swagger, { type SwaggerTransformObject } from "@fastify/swagger";
import type { FastifyInstance } from "fastify";
import { jsonSchemaTransform, jsonSchemaTransformObject } from "fastify-type-provider-zod";
import { z } from "zod";
import * as shapes from "./api-shapes.js";

/** The schemas that have a name of their own in the document. */
const NAMED = {
  Failure: shapes.FailureShape,
  Problem: shapes.ProblemShape,
  Node: shapes.NodeShape,
  Nodes: shapes.NodesShape,
  Move: shapes.MoveShape,
  Moves: shapes.MovesShape,
  Lookup: shapes.LookupShape,
  Story: shapes.StoryShape,
  Registrations: shapes.RegistrationsShape,
  Displaced: shapes.DisplacedShape,
  DisplacedNodes: shapes.DisplacedNodesShape,
  Server: shapes.ServerShape,
  ServerLoad: shapes.ServerLoadShape,
  Master: shapes.MasterShape,
  Masters: shapes.MastersShape,
  Target: shapes.TargetShape,
  Push: shapes.PushShape,
  Instance: shapes.InstanceShape,
  Instances: shapes.InstancesShape,
  Pass: shapes.PassShape,
  Passes: shapes.PassesShape,
  HeldPlan: shapes.HeldPlanShape,
  TargetReport: shapes.TargetReportShape,
  SyncReport: shapes.SyncReportShape,
  Replica: shapes.ReplicaShape,
  Replicas: shapes.ReplicasShape,
  Trouble: shapes.TroubleShape,
  Status: shapes.StatusShape,
};

/** An answer for the document and for fastify, which checks what is sent against `schema`. */
export const answer = <Schema extends z.ZodType, Type extends string = "application/json">(
  description: string,
  schema: Schema,
  type: Type = "application/json" as Type,
) => ({ description, content: { [type]: { schema } } as Record<Type, { schema: Schema }> });

/** Every call may answer with this. */
export const PROBLEM = answer("what went wrong", shapes.ProblemShape, "application/problem+json");

/** The name of the bearer token in the document. */
export const TOKEN = "token";

/** Must be called before the routes are added, because it sees only those that come later. */
export async function describeApi(api: FastifyInstance, version: string): Promise<void> {
  for (const [id, schema] of Object.entries(NAMED)) {
    z.globalRegistry.add(schema, { ...z.globalRegistry.get(schema), id });
  }
  await api.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "sasori",
        version,
        description:
          "Keeps HAProxy's node-to-puppetserver map in sync with PuppetDB. Every error is an RFC 9457 problem.",
        license: { name: "MIT", identifier: "MIT" },
      },
      tags: [
        { name: "nodes", description: "where a node goes, and why" },
        { name: "fleet", description: "the masters, the targets, the state of everything" },
        { name: "machines", description: "for HAProxy, Prometheus and supervisors" },
      ],
      components: {
        securitySchemes: {
          [TOKEN]: {
            type: "http",
            scheme: "bearer",
            description:
              "The content of SASORI_API_TOKEN_FILE. Without a token, only programs on this machine are answered.",
          },
        },
      },
    },
    transform: jsonSchemaTransform,
    transformObject: tidied,
  });
}

/**
 * zod describes each schema twice, as it is taken and as it is given: only what the calls refer to stays. For times and
 * whole numbers it writes more than `format` and `type`, which is noise.
 */
const tidied: SwaggerTransformObject = (given) => {
  const document = jsonSchemaTransformObject(given) as Described;
  const { schemas } = document.components;
  const used = new Map<string, object>();
  const follow = (part: object) => {
    for (const [, name = ""] of JSON.stringify(part).matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
      const schema = schemas[name];
      if (schema === undefined || used.has(name)) continue;
      used.set(name, schema);
      follow(schema);
    }
  };
  follow(document.paths);
  const components = { ...document.components, schemas: Object.fromEntries(used) };
  return JSON.parse(JSON.stringify({ ...document, components }), (_key, value) => {
    if (value?.format === "date-time") delete value.pattern;
    if (value?.maximum === Number.MAX_SAFE_INTEGER) delete value.maximum;
    if (value?.minimum === Number.MIN_SAFE_INTEGER) delete value.minimum;
    return value;
  });
};

interface Described {
  paths: object;
  components: { schemas: Record<string, object> };
}
