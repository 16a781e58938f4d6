// The map file and each HAProxy: in sync or not, which version, and the last push.

import type { Instance } from "../http/api-shapes.js";
import { usePage } from "./page.js";
import { nowOf } from "./state.js";
import css from "./targets.module.css";
import { Card, Name, Read, StateWord, Time } from "./ui.js";
import { age, counted, duration, listOf, number } from "./words.js";

export function HaproxysCard() {
  const { state } = usePage();
  return (
    <Card label="HAProxy instances and the map file">
      <Read {...state.instances}>
        {({ instances, file }) => (
          <ul class={css.list}>
            {[...instances, file].map((instance) => (
              <Target key={instance.target} instance={instance} now={nowOf(state)} />
            ))}
          </ul>
        )}
      </Read>
    </Card>
  );
}

function Target({ instance, now }: { instance: Instance; now: number }) {
  const { target, kind, inSync, pending, version, failure, lastPush, map } = instance;
  const what = kind === "file" ? "map file" : `HAProxy ${version ?? ""}`.trim();
  return (
    <li>
      <p class={css.line}>
        <Name>{target}</Name>
        {/* In the middle of a pass a target is behind. That is no reason for alarm. */}
        {failure !== undefined ? (
          <StateWord tone="bad">{failure.code}</StateWord>
        ) : inSync ? (
          <StateWord tone="good">in sync</StateWord>
        ) : (
          <StateWord tone="busy">{`catching up${pending > 0 ? `, ${counted(pending, "change")} to go` : ""}`}</StateWord>
        )}
      </p>
      <p class={css.about}>{map === null ? what : `${what}, map ${readable(map)}`}</p>
      <p class={css.about}>
        {lastPush === null ? (
          "nothing pushed yet"
        ) : (
          <>
            {kind === "file" ? "written " : "last push "}
            <Time at={lastPush.at}>{age(lastPush.at, now)}</Time>
            {`: ${pushed(lastPush)}, ${lastPush.method === "file" ? "" : `${lastPush.method}, `}${duration(lastPush.durationMs)}`}
          </>
        )}
      </p>
    </li>
  );
}

/** `version 2, 100000 entries`, as the API has it. */
const readable = (map: string) => map.replace(/\d+(?= entries)/, (digits) => number(Number(digits)));

const pushed = ({ add, set, del }: { add: number; set: number; del: number }) =>
  listOf(
    add > 0 && `${number(add)} new`,
    set > 0 && `${number(set)} moved`,
    del > 0 && `${number(del)} removed`,
  ) || "no change";
