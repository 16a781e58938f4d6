// `sasori diff --held`: the plan that the guard holds, whole.

import { counted, number } from "../counts.js";
import type { HeldPlan } from "../http/api-shapes.js";
import { type Address, mustAskDaemon, pagesOf } from "./daemon-client.js";
import { query } from "./listing.js";
import { prose } from "./report-text.js";

/** The daemon sends a plan in pages of at most this size. */
const PAGE = 1_000;

/** All pages in one. Undefined when nothing is held. */
export async function readHeldPlan(address: Address): Promise<Omit<HeldPlan, "next"> | undefined> {
  const ask = (cursor: string | undefined) =>
    mustAskDaemon<HeldPlan>(address, "GET", `/api/v1/plan?${query({ limit: PAGE, cursor })}`);
  let whole: Omit<HeldPlan, "next"> | undefined;
  try {
    for await (const { next: _next, ...plan } of pagesOf(ask)) {
      // Another plan is held by now: begin again, so that the names fit the id.
      if (whole !== undefined && whole.id !== plan.id) return await readHeldPlan(address);
      if (whole === undefined) whole = plan;
      else whole.changes.push(...plan.changes);
    }
    return whole;
  } catch (error) {
    if ((error as { statusCode?: unknown }).statusCode === 404) return undefined;
    throw error;
  }
}

/** What it is, and what each master would lose. */
export function heldPlanHead({ id, reason, count, masters }: Omit<HeldPlan, "next">): string[] {
  const losses = masters.map(({ master, removed, moved }) => {
    const parts = [
      removed > 0 ? `${number(removed)} removed` : "",
      moved > 0 ? `${number(moved)} moved away` : "",
    ];
    return `  ${master ?? "(entries that are not sasori's)"}: ${parts.filter((part) => part !== "").join(", ")}`;
  });
  return [`held plan ${id}, ${counted(count, "change")}: ${prose(reason)}`, ...losses, ""];
}
