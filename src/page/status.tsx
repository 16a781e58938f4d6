// What clients see, what is wrong and what to do, and the figures that a person looks at first.

import type { ComponentChildren } from "preact";
import { type ExplainedTrouble, headlineOf } from "./headline.js";
import { HeldPlan } from "./held-plan.js";
import { usePage } from "./page.js";
import { hourOf, nowOf, type State } from "./state.js";
import css from "./status.module.css";
import { Icon, Prose, StateWord } from "./ui.js";
import { age, number } from "./words.js";

export function StatusCard() {
  const { state } = usePage();
  const { tone, title, detail, troubles } = headlineOf(state);
  const now = nowOf(state);
  return (
    <section class={css.status} aria-label="Is everything in sync?">
      <div class={css.headline} data-tone={tone}>
        <div class={css.sign}>
          <Icon sign={tone} />
        </div>
        <div class={css.words} role="status" aria-live={tone === "bad" ? "assertive" : "polite"} aria-atomic>
          <h1>{title}</h1>
          <p>
            <Prose now={now}>{detail}</Prose>
          </p>
        </div>
      </div>
      {troubles.length > 0 && (
        <ul class={css.troubles} aria-label="What is wrong, and what to do">
          {troubles.map((one, index) => (
            <Trouble
              key={`${one.trouble.code} ${one.trouble.where}`}
              explained={one}
              // The headline has said so already, unless it says that the connection is lost.
              titled={index > 0 || tone === "stale"}
              now={now}
            />
          ))}
        </ul>
      )}
      <Figures state={state} />
    </section>
  );
}

function Trouble({ explained, titled, now }: { explained: ExplainedTrouble; titled: boolean; now: number }) {
  const { tone, title, detail, trouble, cause } = explained;
  const { state } = usePage();
  const held = trouble.code === "held" ? state.status?.lastPass?.held : undefined;
  return (
    <li>
      {titled && (
        <>
          <h2>
            <StateWord tone={tone}>{title}</StateWord>
          </h2>
          <p>
            <Prose now={now}>{detail}</Prose>
          </p>
        </>
      )}
      <dl class={css.cause}>
        {cause !== undefined && (
          <>
            <dt>Cause</dt>
            <dd>
              <Prose now={now}>{cause}</Prose>
            </dd>
          </>
        )}
        <dt>To do</dt>
        <dd>
          <Prose now={now}>{held === undefined ? trouble.remedy : HELD_REMEDY}</Prose>
          <code class={css.code}>{trouble.code}</code>
        </dd>
      </dl>
      {held !== undefined && <HeldPlan key={held.id} held={held} />}
    </li>
  );
}

const HELD_REMEDY =
  "if PuppetDB has lost these nodes by mistake, restore it and do nothing here. If they may go, read the list and approve it.";

function Figures({ state }: { state: State }) {
  const { status, masters, moves } = state;
  if (status === undefined) return null;
  const now = nowOf(state);
  const haproxys = status.targets.filter(({ kind }) => kind === "haproxy");
  const inSync = haproxys.filter((target) => target.inSync).length;
  const servers = masters.value?.masters.filter((master) => master.servers.length > 0);
  const up = servers?.filter((master) => master.servers.every((server) => server.state === "up")).length;
  const hour = hourOf(moves, now);
  return (
    <dl class={css.figures}>
      <Figure label="Nodes">{number(status.nodes)}</Figure>
      <Figure label="Masters" note="up">
        {servers === undefined ? "…" : `${number(up ?? 0)} of ${number(servers.length)}`}
      </Figure>
      <Figure label="HAProxy instances" note={haproxys.length > 0 && "in sync"}>
        {haproxys.length === 0 ? "none" : `${inSync} of ${haproxys.length}`}
      </Figure>
      <Figure label="PuppetDB read">
        {status.lastGoodPoll === null ? "never" : age(status.lastGoodPoll, now)}
      </Figure>
      <Figure label="Moves, last hour">{`${hour.isWhole ? "" : "more than "}${number(hour.total)}`}</Figure>
    </dl>
  );
}

const Figure = ({
  label,
  note,
  children,
}: {
  label: string;
  note?: string | false;
  children: ComponentChildren;
}) => (
  <div>
    <dt>{label}</dt>
    <dd>
      <strong>{children}</strong> <small>{note}</small>
    </dd>
  </div>
);
