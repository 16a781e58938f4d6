// Each replica that shares the state database: in sync or not, and what it last said. Nothing where replicas share none.

import type { Replica } from "../http/api-shapes.js";
import type { Tone } from "./headline.js";
import { usePage } from "./page.js";
import { nowOf } from "./state.js";
import css from "./targets.module.css";
import { Badge, Card, Name, Problem, StateWord, Time } from "./ui.js";
import { age, counted, duration } from "./words.js";

/** A replica that says nothing for longer is a trouble, as in the status. */
const SILENT_MS = 60_000;

const TONES: Record<Replica["state"], Tone> = {
  starting: "busy",
  "in sync": "good",
  "catching up": "busy",
  attention: "warn",
  failing: "bad",
};

export function ReplicasCard() {
  const { value, problem } = usePage().state.replicas;
  if (!value?.shared) return null;
  return (
    <Card label="Replicas">
      <ul class={css.list}>
        {value.replicas.map((replica) => (
          <Row key={replica.name} {...replica} />
        ))}
      </ul>
      {value.failure !== undefined && <Problem>{value.failure.message}</Problem>}
      {problem !== undefined && <Problem>{`not read again: ${problem}`}</Problem>}
    </Card>
  );
}

function Row({ name, self, state, summary, silentMs, nodes, haproxys, lastPass, version }: Replica) {
  const isSilent = silentMs >= SILENT_MS;
  const inSync = haproxys.filter((one) => one.inSync).length;
  const now = nowOf(usePage().state);
  return (
    <li>
      <p class={css.line}>
        <span>
          <Name>{name}</Name>
          {self && <Badge>this one</Badge>}
        </span>
        <StateWord tone={isSilent ? "bad" : TONES[state]} title={summary}>
          {isSilent ? "silent" : state}
        </StateWord>
      </p>
      <p class={css.about}>
        {`${counted(nodes, "node")}, ${inSync} of ${counted(haproxys.length, "HAProxy", "HAProxys")} in sync, sasori ${version}`}
      </p>
      {isSilent && <p class={css.about}>{`last heard of ${duration(silentMs)} ago`}</p>}
      {lastPass !== null && (
        <p class={css.about}>
          {`last pass ${lastPass.outcome} `}
          <Time at={lastPass.startedAt}>{age(lastPass.startedAt, now)}</Time>
        </p>
      )}
    </li>
  );
}
