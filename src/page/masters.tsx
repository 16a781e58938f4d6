// Nodes per master as bars on one scale, with each master's health, requests and queue over every HAProxy.

import { useState } from "preact/hooks";
import type { Masters, ServerLoad } from "../http/api-shapes.js";
import css from "./masters.module.css";
import { usePage } from "./page.js";
import { Badge, Card, Master, Name, Problem, Quiet, StateWord } from "./ui.js";
import { count, counted, percent } from "./words.js";

/** More are shown when asked for; one that is not up is shown always. */
const FEW = 12;
const MAX_WITHOUT = 20;

type MasterRow = Masters["masters"][number];

const isUp = ({ servers }: MasterRow) => servers.length > 0 && servers.every(({ state }) => state === "up");

export function MastersCard() {
  const { state, domain } = usePage();
  const { value, problem } = state.masters;
  const [all, setAll] = useState(false);
  if (value === undefined)
    return (
      <Card label="Masters">
        <Quiet>{problem ?? "Waiting for the first answer."}</Quiet>
      </Card>
    );
  const { masters, unroutable, failures } = value;
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
            {all ? "Show fewer" : `Show all ${count(masters.length)}`}
          </button>
        )
      }
    >
      <ul class={css.masters}>
        {shown.map((master) => (
          <Row key={master.master} master={master} most={most} />
        ))}
      </ul>
      {more > 0 && <Quiet>{counted(more, "more master")}, all up</Quiet>}
      {masters.length === 0 && <Quiet>No HAProxy has told its servers yet.</Quiet>}
      {unroutable.length > 0 && (
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
      )}
      {failures.map(({ haproxy }) => (
        <Quiet key={haproxy}>{`No load figures from ${haproxy}.`}</Quiet>
      ))}
      {problem !== undefined && <Problem>{`not read again: ${problem}`}</Problem>}
    </Card>
  );
}

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
    </li>
  );
}

/** One word when every HAProxy sees the same, else how many see it down, or drained. */
function Health({ servers }: { servers: readonly ServerLoad[] }) {
  if (servers.length === 0) return <StateWord tone="bad">no server</StateWord>;
  const those = (state: ServerLoad["state"]) => servers.filter((server) => server.state === state);
  const worst = (["down", "drained"] as const).find((state) => those(state).length > 0);
  const away = servers.find(({ members = [] }) => members.some(({ state }) => state !== "up"));
  if (worst === undefined && away !== undefined) return <StateWord tone="warn">{away.status}</StateWord>;
  if (worst === undefined) return <StateWord tone="good">up</StateWord>;
  const found = those(worst);
  const all = found.length === servers.length;
  const word = worst === "down" && all ? (found[0]?.status.toLowerCase() ?? worst) : worst;
  return (
    <StateWord
      tone={worst === "down" ? "bad" : "warn"}
      title={found.map(({ haproxy }) => haproxy).join(", ")}
    >
      {all ? word : `${word} in ${found.length} of ${servers.length}`}
    </StateWord>
  );
}

/** Requests now, over every HAProxy: in the master, and in its queue. The limits matter when somebody waits. */
function Load({ servers }: { servers: readonly ServerLoad[] }) {
  const sum = (pick: (server: ServerLoad) => number | null) =>
    servers.reduce((total, server) => total + (pick(server) ?? 0), 0);
  const of = (limit: number) => (limit > 0 ? ` of ${count(limit)}` : "");
  const sessions = sum((server) => server.sessions);
  const queue = sum((server) => server.queue);
  if (sessions + queue === 0) return <span class={css.load} />;
  const room = of(sum((server) => server.maxqueue));
  const title = `${count(sessions)}${of(sum((server) => server.maxconn))} requests served now, ${count(queue)}${room} waiting`;
  return (
    <span class={css.load} title={title}>
      {`${count(sessions)} served`}
      {queue > 0 && <b>{`, ${count(queue)}${room} queued`}</b>}
    </span>
  );
}
