// Nodes per master as bars on one scale, with each master's health, requests and queue over every HAProxy.

import { useState } from "preact/hooks";
import type { Masters, ServerLoad } from "../http/api-shapes.js";
import css from "./masters.module.css";
import { usePage } from "./page.js";
import { Badge, Card, Master, Name, Quiet, Read, StateWord } from "./ui.js";
import { counted, number, percent } from "./words.js";

/** How many are shown at first. A master that is not up is always shown. */
const FEW = 12;
const MAX_WITHOUT = 20;

type MasterRow = Masters["masters"][number];

/** A server, or a pool with all its servers, as HAProxy instances see it. */
type Seen = Pick<ServerLoad, "haproxy" | "state" | "status" | "members">;

const upIn = ({ members = [] }: Seen) => members.filter(({ state }) => state === "up").length;
const isWhole = ({ state, members = [] }: Seen) =>
  state === "up" && members.every((member) => member.state === "up");
const isUp = ({ servers }: MasterRow) => servers.length > 0 && servers.every(isWhole);

export function MastersCard() {
  const { state, domain } = usePage();
  const [all, setAll] = useState(false);
  const masters = state.masters.value?.masters ?? [];
  const most = Math.max(1, ...masters.map(({ nodes }) => nodes));
  const shown = all ? masters : masters.filter((master, index) => index < FEW || !isUp(master));
  const more = masters.length - shown.length;
  return (
    <Card
      label="Masters"
      note={domain && `all in ${domain.slice(1)}`}
      action={
        (more > 0 || all) && (
          <button type="button" data-kind="plain" aria-expanded={all} onClick={() => setAll(!all)}>
            {all ? "Show fewer" : `Show all ${number(masters.length)}`}
          </button>
        )
      }
    >
      <Read {...state.masters}>
        {({ unroutable, failures }) => (
          <>
            <ul class={css.masters}>
              {shown.map((master) => (
                <Row key={master.master} master={master} most={most} />
              ))}
            </ul>
            {more > 0 && <Quiet>{counted(more, "more master")}, all up</Quiet>}
            {masters.length === 0 && <Quiet>sasori does not know HAProxy's servers yet.</Quiet>}
            {unroutable.length > 0 && <Without unroutable={unroutable} />}
            {failures.map(({ haproxy }) => (
              <Quiet key={haproxy}>{`No load figures from ${haproxy}.`}</Quiet>
            ))}
          </>
        )}
      </Read>
    </Card>
  );
}

const Without = ({ unroutable }: Pick<Masters, "unroutable">) => (
  <div class={css.without}>
    <h3>Producers without a server in HAProxy</h3>
    <ul>
      {unroutable.slice(0, MAX_WITHOUT).map(({ producer, nodes }) => (
        <li key={producer}>
          <Name>{producer}</Name>
          <span>{counted(nodes, "node")}</span>
        </li>
      ))}
    </ul>
    {unroutable.length >= MAX_WITHOUT && <Quiet>There may be more; these have the most nodes.</Quiet>}
  </div>
);

function Row({ master: { master, nodes, share, servers, kind }, most }: { master: MasterRow; most: number }) {
  return (
    <li>
      <span class={css.who}>
        <Master>{master}</Master>
        {kind !== "server" && <Badge>{kind}</Badge>}
      </span>
      <span class={css.health}>
        <Health servers={servers} />
      </span>
      <span class={css.bar} aria-hidden="true">
        <i style={{ "--share": nodes / most }} />
      </span>
      <span class={css.nodes}>
        {counted(nodes, "node")} <small>{percent(share)}</small>
      </span>
      <Load servers={servers} />
      <Members servers={servers} />
    </li>
  );
}

/**
 * One word if every HAProxy sees the same. Otherwise how many see it down or drained. For a pool that is up: how many of
 * its servers are up.
 */
function Health({ servers }: { servers: readonly Seen[] }) {
  const [first] = servers;
  if (first === undefined) return <StateWord tone="bad">no server</StateWord>;
  const those = (state: ServerLoad["state"]) => servers.filter((server) => server.state === state);
  const worst = (["down", "drained"] as const).find((state) => those(state).length > 0);
  if (worst === undefined) {
    const least = servers.reduce((a, b) => (upIn(b) < upIn(a) ? b : a), first);
    return (
      <StateWord tone={isWhole(least) ? "good" : "warn"}>{least.members ? least.status : "up"}</StateWord>
    );
  }
  const found = those(worst);
  const all = found.length === servers.length;
  const word = worst === "down" && all ? (found[0]?.status.toLowerCase() ?? worst) : worst;
  return (
    <StateWord
      tone={worst === "down" ? "bad" : "warn"}
      title={found.map(({ haproxy }) => haproxy).join(", ")}
    >
      {all ? word : `${word} in ${found.length} of ${servers.length} HAProxy instances`}
    </StateWord>
  );
}

/** The servers of a pool by name, shown on a click. */
function Members({ servers }: { servers: readonly Seen[] }) {
  const seen = servers.flatMap(({ haproxy, members = [] }) =>
    members.map((member) => ({ ...member, haproxy })),
  );
  const names = [...new Set(seen.map(({ name }) => name))];
  if (names.length === 0) return null;
  return (
    <details class={css.members}>
      <summary>{counted(names.length, "server")}</summary>
      <ul>
        {names.map((name) => (
          <li key={name}>
            <Name>{name}</Name>
            <Health servers={seen.filter((member) => member.name === name)} />
          </li>
        ))}
      </ul>
    </details>
  );
}

/** Requests now, over every HAProxy: in the master, and in its queue. The limits matter when somebody waits. */
function Load({ servers }: { servers: readonly ServerLoad[] }) {
  const sum = (pick: (server: ServerLoad) => number | null) =>
    servers.reduce((total, server) => total + (pick(server) ?? 0), 0);
  const of = (limit: number) => (limit > 0 ? ` of ${number(limit)}` : "");
  const sessions = sum((server) => server.sessions);
  const queue = sum((server) => server.queue);
  if (sessions + queue === 0) return <span class={css.load} />;
  const room = of(sum((server) => server.maxqueue));
  const title = `${number(sessions)}${of(sum((server) => server.maxconn))} requests served now, ${number(queue)}${room} waiting`;
  return (
    <span class={css.load} title={title}>
      {`${number(sessions)} served`}
      {queue > 0 && <b>{`, ${number(queue)}${room} queued`}</b>}
    </span>
  );
}
