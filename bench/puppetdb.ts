// Stands for PuppetDB where thousands of nodes are looked for one by one: the demo's stand-in reads all its rows for
// each question, the real one has an index. Every node has one factset; a query that names nodes gets theirs.

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

const LIST_OF_ACTIVE = JSON.stringify(["extract", ["certname"], ["=", "node_state", "active"]]);

export interface PuppetdbStandIn {
  url: string;
  /** Producer by node; may be replaced while it runs. */
  facts: ReadonlyMap<string, string>;
  /** Queries so far. */
  asked: number;
  close(): Promise<void>;
}

export async function startPuppetdb(facts: ReadonlyMap<string, string>): Promise<PuppetdbStandIn> {
  const server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? "", "http://localhost");
    const query = searchParams.get("query") ?? "";
    standIn.asked += 1;
    const rows = pathname.endsWith("/factsets") ? rowsFor(query) : [];
    const isListing = pathname.endsWith("/nodes") && query === LIST_OF_ACTIVE;
    response
      .writeHead(200, { "content-type": "application/json;charset=utf-8" })
      .end(JSON.stringify(isListing ? Array.from(standIn.facts.keys(), (certname) => ({ certname })) : rows));
  });
  const rowsFor = (query: string) => {
    const named = query.match(/node\d+\.example\.com/g) ?? [...standIn.facts.keys()];
    const producer_timestamp = new Date(Date.now() - 1_000).toISOString();
    return named.flatMap((certname) => {
      const producer = standIn.facts.get(certname);
      return producer ? [{ certname, producer, producer_timestamp }] : [];
    });
  };
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const standIn: PuppetdbStandIn = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    facts,
    asked: 0,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
  return standIn;
}
