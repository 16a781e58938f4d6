// One node's story: where its requests go and why, what the file and each HAProxy hold, its moves, and a form to move it.

import type { ComponentChildren } from "preact";
import type { Story as Whole } from "../http/api-shapes.js";
import type { Tone } from "./headline.js";
import { MoveList } from "./moves.js";
import { usePage } from "./page.js";
import { RegisterForm } from "./register.js";
import { nowOf, type State } from "./state.js";
import css from "./story.module.css";
import { Command, Icon, Name, Problem, Quiet, Time } from "./ui.js";
import { age, clock, remarksOf, SOURCE_REASONS } from "./words.js";

export function Story({ opened }: { opened: NonNullable<State["story"]> }) {
  const { state, actions } = usePage();
  const { certname, value, problem } = opened;
  return (
    <article class={css.story} aria-labelledby="story-title">
      <div class={css.title}>
        <h2 id="story-title" tabIndex={-1}>
          <Name>{certname}</Name>
        </h2>
        <button type="button" onClick={actions.close}>
          Close
        </button>
      </div>
      {problem !== undefined && <Problem>{problem}</Problem>}
      {value === undefined && problem === undefined && <Quiet>Asking every HAProxy …</Quiet>}
      {value !== undefined && <Details story={value} now={nowOf(state)} />}
    </article>
  );
}

function Details({ story, now }: { story: Whole; now: number }) {
  const { certname, desired, file, live, home, moves, health } = story;
  const wanted = desired.master ?? null;
  const isOwn = desired.source === "registration" || desired.source === "learned";
  return (
    <>
      <Answer desired={desired} now={now} />
      <ul class={css.path} aria-label="Who has which route">
        <Stop where="desired" holds={wanted} wanted={wanted} failure={desired.failure} />
        <Stop
          where="map file"
          holds={"master" in file ? file.master : null}
          wanted={wanted}
          failure={"failure" in file ? file.failure : undefined}
        />
        {live.map(({ haproxy, master = null, failure }) => (
          <Stop key={haproxy} where={haproxy} holds={master} wanted={wanted} failure={failure}>
            {health
              .filter((one) => one.haproxy === haproxy)
              .map(({ state }) => (
                <span key={state}>{`sees its master ${state}`}</span>
              ))}
          </Stop>
        ))}
      </ul>
      {home !== undefined && (
        <p>
          It left <Name>{home}</Name> while that was down or drained. <Command>sasori rebalance</Command>{" "}
          moves it back.
        </p>
      )}
      {wanted !== null && desired.unroutableProducer !== undefined && (
        <Problem>
          Its latest submission in PuppetDB came from <Name>{desired.unroutableProducer}</Name>, for which
          HAProxy has no server. The node keeps its old route.
        </Problem>
      )}
      {desired.heldBy !== undefined && (
        <Problem>
          PuppetDB no longer lists it. Its removal waits for the approval of plan{" "}
          <code>{desired.heldBy}</code>.
        </Problem>
      )}
      <div class={css.sections}>
        <div>
          <h3>Moves</h3>
          {moves.length === 0 ? (
            <Quiet>None since sasori started.</Quiet>
          ) : (
            <MoveList moves={moves.slice(0, 20)} now={now} ofOne />
          )}
        </div>
        <div>
          <h3>Move it by hand</h3>
          <RegisterForm certname={certname} isOwn={isOwn} />
        </div>
      </div>
    </>
  );
}

/** What a client that names this node gets, and why. */
function Answer({ desired, now }: { desired: Whole["desired"]; now: number }) {
  const { master, source, since, unroutableProducer: producer } = desired;
  if (master === undefined)
    return (
      <p class={css.answer} data-tone="bad">
        <strong>404: no route</strong>
        {producer === undefined ? (
          "It is not in the map: no master has submitted anything for this node to PuppetDB, and nobody has registered it."
        ) : (
          <>
            Its latest submission in PuppetDB came from <Name>{producer}</Name>, for which HAProxy has no
            server. Add an HAProxy server with that name or host, or set SASORI_MASTER_ALIASES.
          </>
        )}
      </p>
    );
  return (
    <p class={css.answer}>
      <strong>
        Goes to <Name>{master}</Name>
      </strong>{" "}
      {source !== undefined && `because ${SOURCE_REASONS[source]}${remarksOf(desired)}`}
      {since && (
        <>
          , <Time at={since}>{`${clock(since, now)} (${age(since, now)})`}</Time>
        </>
      )}
      .{" "}
      {(source === "registration" || source === "learned") && "A newer submission in PuppetDB replaces that."}
    </p>
  );
}

interface StopProps {
  where: string;
  holds: string | null;
  wanted: string | null;
  failure: { code: string; message: string } | undefined;
  children?: ComponentChildren;
}

/** One place that should have the route. If the node has no route, all agree, but none gets a green tick. */
function Stop({ where, holds, wanted, failure, children }: StopProps) {
  const right = failure === undefined && holds === wanted;
  const tone: Tone = !right ? "bad" : wanted === null ? "busy" : "good";
  return (
    <li data-tone={tone}>
      <span class={css.where}>
        <Name>{where}</Name>
      </span>
      <span class={css.holds}>
        {tone !== "busy" && <Icon sign={tone} />}
        {failure !== undefined ? "unknown" : holds === null ? "no route" : <Name>{holds}</Name>}
      </span>
      {!right && failure === undefined && <span>differs; the next pass corrects it</span>}
      {failure !== undefined && <code title={failure.message}>{failure.code}</code>}
      {children}
    </li>
  );
}
