// What a person can do on the page: look for a node, start a pass, approve a held plan, register a node.
// Promises: one change at a time; each reports its result; what could easily be a mistake is confirmed first.

import type { HeldPlan, Story } from "../http/api-shapes.js";
import { lacking } from "../http/lacking.js";
import type { SyncReport } from "../sync-report.js";
import { Cancelled, change, messageOf, nodePath, Refusal, read } from "./calls.js";
import { askToken, confirm } from "./dialogs.js";
import type { Feed } from "./feed.js";
import { changesOf } from "./held-plan.js";
import type { Notice, State } from "./state.js";
import { Name } from "./ui.js";
import { counted, duration, number } from "./words.js";

/** A notice of success disappears by itself. One of a failure stays until it is dismissed. */
const NOTICE_MS = 10_000;

interface Registration {
  certname: string;
  master: string;
  /** Empty if it was not given. */
  by: string;
  reason: string;
}

const PASS_WORDS = {
  done: "Pass done",
  failed: "Pass failed in part; see the top of the page",
  held: "Pass done, except for what waits for approval",
};

/** Where a change that is in force is still missing: targets that the next pass writes, or the state file. */
function lacks(story: Story): string {
  const untold = lacking(story);
  const targets = ` ${counted(untold, "target")} could not be written yet; the next pass writes the change.`;
  const file = story.unsaved ? ` But ${story.unsaved.message}.` : "";
  return (untold > 0 ? targets : "") + file;
}

export type Actions = ReturnType<typeof actionsOn>;

export function actionsOn(state: State, feed: Feed, changed: () => void) {
  /** Runs the call, shows its result, and reads again what it may have changed. Resolves to whether it succeeded. */
  async function perform(what: string, call: () => Promise<Notice>): Promise<boolean> {
    if (state.busy !== undefined) return false;
    state.busy = what;
    state.notice = undefined;
    changed();
    try {
      const notice = await call();
      state.notice = notice;
      if (notice.good)
        window.setTimeout(() => {
          if (state.notice === notice) dismiss();
        }, NOTICE_MS);
      return true;
    } catch (error) {
      state.notice = error instanceof Cancelled ? undefined : { good: false, text: messageOf(error) };
      return false;
    } finally {
      state.busy = undefined;
      changed();
      feed.refresh();
    }
  }

  function dismiss(): void {
    state.notice = undefined;
    changed();
  }

  const sync = (what: "sync" | "full" | "approve", body: { full?: boolean; approve?: string } = {}) =>
    perform(what, async () => {
      const report = await change<SyncReport>("POST", "sync", body, askToken);
      if (report.approvalUnmatched) {
        const why = "the plan has changed since, or PuppetDB could not be read";
        throw new Refusal(409, `Nothing was approved: ${why}. Read the plan that is shown now.`);
      }
      const moved = report.moved === 0 ? "nothing to change" : `${counted(report.moved, "node")} changed`;
      const text = `${PASS_WORDS[report.outcome]}: ${moved}, ${duration(report.durationMs)}.`;
      return { good: report.outcome !== "failed", text };
    });

  async function approve({ id, count: all, masters }: HeldPlan): Promise<void> {
    const changes = counted(all, "change");
    const sure = await confirm(`Approve ${changes}?`, `Approve ${number(all)}`, [
      <p key="what">
        This approves exactly these nodes, plan <code>{id}</code>. Requests for removed nodes are answered
        with 404 afterwards.
      </p>,
      <ul key="masters">
        {masters.map((one) => (
          <li key={one.master}>
            {one.master === null ? "entries that are not sasori's" : <Name>{one.master}</Name>}:{" "}
            {changesOf(one)}
          </li>
        ))}
      </ul>,
    ]);
    if (sure) await sync("approve", { approve: id });
  }

  /** Asks first if PuppetDB does not know the name, because it may be a typo. */
  async function isMeant({ certname, master }: Registration): Promise<boolean> {
    const { value } = await read<Story>(nodePath(certname));
    if (value.desired.master !== undefined || value.desired.unroutableProducer !== undefined) return true;
    return confirm("PuppetDB does not know this node", "Register anyway", [
      <p key="what">
        <Name>{certname}</Name> has no route and no submission in PuppetDB. Is the name right? Requests for it
        would go to <Name>{master}</Name> until you end the registration.
      </p>,
    ]);
  }

  const register = (wanted: Registration) =>
    perform("register", async () => {
      const { certname, master, by, reason } = wanted;
      if (!(await isMeant(wanted))) throw new Cancelled();
      const body = { master, ...(by !== "" && { by }), ...(reason !== "" && { reason }) };
      const story = await change<Story>("PUT", nodePath(certname), body, askToken);
      return { good: true, text: `${certname} now goes to ${master}.${lacks(story)}` };
    });

  const endRegistration = (certname: string) =>
    perform("end", async () => {
      const story = await change<Story>("DELETE", nodePath(certname), undefined, askToken);
      const { master } = story.desired;
      const now = master === undefined ? "it is no longer in the map" : `it goes to ${master}`;
      return { good: true, text: `PuppetDB decides about ${certname} again: ${now}.${lacks(story)}` };
    });

  /** A new search closes the open story. */
  async function search(text: string): Promise<void> {
    leaveStory();
    await feed.search(text);
  }

  /** For Enter in the search: opens the node of that name, or else the first one that was found. */
  async function openFirst(text: string): Promise<void> {
    await search(text);
    const { nodes = [], unroutable = [] } = state.search.found.value ?? {};
    const found = [...nodes, ...unroutable].map(({ certname }) => certname);
    const certname = found.includes(text) ? text : found[0];
    if (certname !== undefined) location.hash = `node=${encodeURIComponent(certname)}`;
  }

  function leaveStory(): void {
    // Setting the hash would scroll to the top.
    if (location.hash !== "") history.pushState(null, "", location.pathname);
    void feed.open(undefined);
  }

  function close(): void {
    leaveStory();
    document.getElementById("search")?.focus();
  }

  return { sync, approve, register, endRegistration, dismiss, search, openFirst, close };
}
