// Each replica that shares the state database: in sync or not, and what it last said. Nothing if replicas do not share
// one.

import type { Replica } from "../http/api-shapes.js";
import { SILENT_MS } from "../http/lacking.js";
import type { Tone } from "./headline.js";
import { usePage } from "./page.js";
import { nowOf } from "./state.js";
import css from "./targets.module.css";
import { Badge, Card, Name, Problem, Read, StateWord, Time } from "./ui.js";
import { age, counted, duration } from "./words.js";

const TONES: Record<Replica["state"], Tone> = {
  starting: "busy",
  "in sync": "good",
  "catching up": "busy",
  attention: "warn",
  failing: "bad",
};

export function ReplicasCard() {
  const { replicas } = usePage().state;
  if (!replicas.value?.shared) return null;
  return (
    <Card label="Replicas">
      <Read {...replicas}>
        {({ replicas, failure }) => (
          <>
            <ul class={css.list}>
              {replicas.map((replica) => (
                <Row key={replica.name} {...replica} />
              ))}
            </ul>
            {failure !== undefined && <Problem>{failure.message}</Problem>}
          </>
        )}
      </Read>
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
        {`${counted(nodes, "node")}, ${inSync} of ${counted(haproxys.length, "HAProxy instance")} in sync, sasori ${version}`}
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
