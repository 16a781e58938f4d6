// The whole held plan, to read before approving it: how many nodes each master would lose, and every name.

import { useEffect, useState } from "preact/hooks";
import type { HeldPlan as Plan, Status } from "../http/api-shapes.js";
import { messageOf, read } from "./calls.js";
import css from "./held-plan.module.css";
import { usePage } from "./page.js";
import { Command, Master, Name, Problem, Quiet, Route } from "./ui.js";
import { counted, listOf, number, percent } from "./words.js";

/** How many names are read at once. */
const PAGE = 200;

type Held = NonNullable<NonNullable<Status["lastPass"]>["held"]>;
type PlanMaster = Plan["masters"][number];

/** `removed`, `moved` or both, as `20 removed, 3 moved`. */
export const changesOf = ({ removed, moved }: Pick<PlanMaster, "removed" | "moved">) =>
  listOf(removed > 0 && `${number(removed)} removed`, moved > 0 && `${number(moved)} moved`);

/** Its key is the plan's id, so another plan gets a new component. */
export function HeldPlan({ held }: { held: Held }) {
  const { state, actions } = usePage();
  const [plan, setPlan] = useState<Plan>();
  const [master, setMaster] = useState<string>();
  const [problem, setProblem] = useState<string>();

  async function readPage(before?: Plan): Promise<void> {
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (before?.next) query.set("cursor", before.next);
    if (master !== undefined) query.set("master", master);
    try {
      const { value } = await read<Plan>(`plan?${query}`);
      if (value.id !== held.id) return; // Another plan is held by now. The next status names it.
      setPlan(before === undefined ? value : { ...value, changes: [...before.changes, ...value.changes] });
      setProblem(undefined);
    } catch (error) {
      setProblem(messageOf(error));
    }
  }
  useEffect(() => void readPage(), [master]);

  const shown = plan?.changes.length ?? 0;
  const of = plan?.masters.find((one) => one.master === master);
  const wanted = of === undefined ? held.count : of.removed + of.moved;
  return (
    <article class={css.plan} aria-label="The plan that is held">
      {plan !== undefined && (
        <>
          <ul class={css.masters} aria-label="Changes per master">
            {plan.masters.map((one) => (
              <li key={one.master}>
                <button
                  type="button"
                  aria-pressed={master !== undefined && master === one.master}
                  onClick={() => setMaster(master === one.master ? undefined : (one.master ?? undefined))}
                >
                  {one.master === null ? "entries that are not sasori's" : <Master>{one.master}</Master>}
                  <span>
                    {changesOf(one)}
                    {shareOf(one, state.masters.value?.masters)}
                  </span>
                </button>
              </li>
            ))}
          </ul>
          {/* biome-ignore lint/a11y/noNoninteractiveTabindex: people without a mouse scroll it with the keyboard */}
          <section class={css.names} tabIndex={0} aria-label="Every name of the plan">
            <ul>
              {plan.changes.map(({ certname, from, to }) => (
                <li key={certname}>
                  <Name>{certname}</Name>
                  <Route from={from} to={to} none="removed" />
                </li>
              ))}
            </ul>
          </section>
        </>
      )}
      {problem !== undefined && <Problem>{problem}</Problem>}
      <div class={css.row}>
        <Quiet>{`${number(shown)} of ${number(wanted)} shown`}</Quiet>
        {plan?.next && (
          <button type="button" onClick={() => void readPage(plan)}>
            {`Show ${number(Math.min(PAGE, wanted - shown))} more`}
          </button>
        )}
        <a href="api/v1/plan.txt" download={`plan-${held.id}.txt`}>
          Download all as text
        </a>
      </div>
      <div class={css.row}>
        <button
          type="button"
          data-kind="danger"
          aria-disabled={state.busy !== undefined}
          onClick={() => plan && void actions.approve(plan)}
        >
          {state.busy === "approve" ? "Approving …" : `Approve ${counted(held.count, "change")} …`}
        </button>
        <Quiet>
          On the command line: <Command>{`sasori sync --approve ${held.id}`}</Command>
        </Quiet>
      </div>
    </article>
  );
}

function shareOf(
  { master, removed, moved }: PlanMaster,
  rows?: readonly { master: string; nodes: number }[],
) {
  const nodes = rows?.find((row) => row.master === master)?.nodes ?? 0;
  return nodes === 0 ? "" : ` (${percent((removed + moved) / nodes)} of its nodes)`;
}
