// Nodes per master as bars, with each master's health and queue in every HAProxy; the HAProxys themselves.

import type { Instance, Masters, ServerLoad } from "../http/api-shapes.js";
import { type Child, h } from "./dom.js";
import { icon } from "./icons.js";
import { nowOf, type State } from "./state.js";
import { age, count, counted, duration, moment, name, percent, prose } from "./words.js";

/** More masters than anybody has; a mistake elsewhere must not make the page slow. */
const MAX_MASTERS = 64;

type Master = Masters["masters"][number];

export function renderMasters(state: State): Node[] {
  const { value, problem } = state.masters;
  const title = h("h2", {}, "Masters");
  if (value === undefined)
    return [title, h("p", { class: "quiet" }, problem ?? "Waiting for the first answer.")];
  const shown = value.masters.slice(0, MAX_MASTERS);
  const most = Math.max(1, ...shown.map(({ nodes }) => nodes));
  return [
    title,
    h(
      "ul",
      { class: "masters" },
      shown.map((master) => renderMaster(master, most)),
    ),
    value.masters.length > shown.length &&
      h("p", { class: "quiet" }, `and ${count(value.masters.length - shown.length)} more masters`),
    value.masters.length === 0 && h("p", { class: "quiet" }, "No HAProxy has told its servers yet."),
    value.unroutable.length > 0 &&
      h(
        "div",
        { class: "unroutable" },
        h("h3", {}, "Producers without a server in HAProxy"),
        h(
          "ul",
          {},
          value.unroutable
            .slice(0, 20)
            .map(({ producer, nodes }) => h("li", {}, name(producer), " ", counted(nodes, "node"))),
        ),
      ),
    value.failures.map(({ failure }) =>
      h("p", { class: "wrong" }, icon("warn"), `No loads: ${failure.message}`),
    ),
    problem !== undefined && h("p", { class: "wrong" }, icon("warn"), `Not read again: ${problem}`),
  ]
    .flat()
    .filter((node) => node !== false);
}

function renderMaster({ master, nodes, share, servers }: Master, most: number): Node {
  return h(
    "li",
    { "data-key": master },
    h("span", { class: "who" }, name(master)),
    renderHealth(servers),
    h("span", { class: "nodes" }, counted(nodes, "node"), h("small", {}, percent(share))),
    h("span", { class: "bar", "aria-hidden": "true", "--share": nodes / most }, h("i", {})),
    renderLoad(servers),
  );
}

/** One word when every HAProxy sees the same, else who sees it down, or drained. */
function renderHealth(servers: readonly ServerLoad[]): Node {
  if (servers.length === 0) return h("span", { class: "health bad" }, icon("bad"), "no server");
  const those = (state: ServerLoad["state"]) => servers.filter((server) => server.state === state);
  const worst = (["down", "drained"] as const).find((state) => those(state).length > 0);
  if (worst === undefined) return h("span", { class: "health good" }, icon("good"), "up");
  const found = those(worst);
  const all = found.length === servers.length;
  const word = worst === "down" && all ? (found[0]?.status.toLowerCase() ?? worst) : worst;
  const tone = worst === "down" ? "bad" : "busy";
  return h(
    "span",
    { class: `health ${tone}`, title: found.map(({ haproxy }) => haproxy).join(", ") },
    icon(tone),
    all ? word : `${word} in ${found.length} of ${servers.length}`,
  );
}

/** Requests now, over every HAProxy: in the master, and in its queue. The limits matter when somebody waits. */
function renderLoad(servers: readonly ServerLoad[]): Child {
  const sum = (pick: (server: ServerLoad) => number | null) =>
    servers.reduce((total, server) => total + (pick(server) ?? 0), 0);
  const of = (limit: number) => (limit > 0 ? ` of ${count(limit)}` : "");
  const sessions = count(sum((server) => server.sessions));
  const queue = sum((server) => server.queue);
  const room = of(sum((server) => server.maxqueue));
  const title = `${sessions}${of(sum((server) => server.maxconn))} requests served now, ${count(queue)}${room} waiting`;
  return h(
    "span",
    { class: "load", title },
    servers.length > 0 && [
      `${sessions} served, `,
      h(
        "span",
        { class: queue > 0 ? "queued" : undefined },
        `${count(queue)}${queue > 0 ? room : ""} queued`,
      ),
    ],
  );
}

/** The map file and each HAProxy. */
export function renderInstances(state: State): Node[] {
  const { value, problem } = state.instances;
  const now = nowOf(state);
  const title = h("h2", {}, "HAProxys and the map file");
  if (value === undefined)
    return [title, h("p", { class: "quiet" }, problem ?? "Waiting for the first answer.")];
  return [
    title,
    h(
      "ul",
      { class: "instances" },
      [...value.instances.slice(0, MAX_MASTERS), value.file].map((instance) => renderInstance(instance, now)),
    ),
    ...(problem === undefined
      ? []
      : [h("p", { class: "wrong" }, icon("warn"), `Not read again: ${problem}`)]),
  ];
}

function renderInstance(instance: Instance, now: number): Node {
  const { target, kind, inSync, pending, version, failure, lastPush, map } = instance;
  // Behind without a failure is what a pass looks like from the middle of it: no reason for alarm.
  const [tone, words] =
    failure !== undefined
      ? (["bad", "not in sync"] as const)
      : inSync
        ? (["good", "in sync"] as const)
        : (["busy", "catching up"] as const);
  return h(
    "li",
    { "data-key": target },
    h(
      "p",
      { class: "line" },
      h("span", { class: "who" }, name(target)),
      h(
        "span",
        { class: `health ${tone}` },
        icon(tone),
        words,
        pending > 0 && `, ${counted(pending, "change")} to go`,
      ),
    ),
    h(
      "p",
      { class: "quiet" },
      [
        kind === "file" ? "map file" : version === undefined ? "HAProxy" : `HAProxy ${version}`,
        map === null ? undefined : map,
      ]
        .filter((word) => word !== undefined)
        .join(", "),
    ),
    h(
      "p",
      { class: "quiet" },
      lastPush === null
        ? "nothing pushed yet"
        : [
            kind === "file" ? "written " : "last push ",
            moment(lastPush.at, age(lastPush.at, now)),
            `: ${changesOf(lastPush)}, ${lastPush.method}, ${duration(lastPush.durationMs)}`,
          ],
    ),
    failure && h("p", { class: "wrong" }, h("code", {}, failure.code), " ", prose(failure.message, now)),
  );
}

const changesOf = ({ add, set, del }: { add: number; set: number; del: number }) =>
  [add > 0 && `${count(add)} new`, set > 0 && `${count(set)} moved`, del > 0 && `${count(del)} removed`]
    .filter((part) => part !== false)
    .join(", ") || "no change";
