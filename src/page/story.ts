// One node: the search for it, and its whole story; the registrations that were made by hand.

import type { Story } from "../http/api-shapes.js";
import { type Child, h } from "./dom.js";
import { icon } from "./icons.js";
import { renderMoveList } from "./moves.js";
import { nowOf, type State } from "./state.js";
import { age, clock, count, moment, name, nodeLink, SOURCE_REASONS, SOURCE_WORDS } from "./words.js";

export function renderFound({ search }: State): Node[] {
  const { text, found } = search;
  if (text === "") return [];
  const { value, problem } = found;
  if (problem !== undefined) return [h("p", { class: "wrong" }, icon("warn"), problem)];
  if (value === undefined) return [h("p", { class: "quiet" }, "Looking …")];
  const exact = value.nodes.some(({ certname }) => certname === text);
  const nothing = value.nodes.length === 0;
  return [
    h(
      "p",
      { class: "quiet", role: "status" },
      nothing
        ? "No node with that in its name is in the map. "
        : value.next === null
          ? `${count(value.nodes.length)} found. `
          : `The first ${count(value.nodes.length)}; go on typing to see fewer. `,
      !exact &&
        text.includes(".") &&
        h("a", { href: `#node=${encodeURIComponent(text)}` }, "Ask for exactly this name"),
    ),
    h(
      "ul",
      { class: "found" },
      value.nodes.map((node) =>
        h("li", { "data-key": node.certname }, nodeLink(node.certname), " ", name(node.master)),
      ),
    ),
  ];
}

export function renderStory(state: State): Node[] {
  const { story } = state;
  if (story === undefined) return [];
  const { certname, value, problem } = story;
  return [
    h(
      "article",
      { class: "story", "aria-labelledby": "story-title", "data-key": certname },
      h(
        "div",
        { class: "title" },
        h("h3", { id: "story-title", tabindex: "-1" }, name(certname)),
        h("button", { type: "button", class: "plain", "data-do": "close" }, "Close"),
      ),
      problem !== undefined && h("p", { class: "wrong" }, icon("warn"), name(problem)),
      value === undefined && problem === undefined && h("p", { class: "quiet" }, "Asking every HAProxy …"),
      value && renderWhole(state, value),
    ),
  ];
}

function renderWhole(state: State, story: Story): Child[] {
  const now = nowOf(state);
  const { desired, home, moves } = story;
  return [
    renderWhy(story, now),
    h(
      "ul",
      { class: "path" },
      renderStop("sasori wants", desired.master ?? null, desired.master, desired.failure),
      renderStop(
        "map file",
        "master" in story.file ? story.file.master : undefined,
        desired.master,
        "failure" in story.file ? story.file.failure : undefined,
      ),
      story.live.map(({ haproxy, master, failure }) =>
        renderStop(haproxy, master, desired.master, failure, healthIn(story, haproxy)),
      ),
    ),
    home !== undefined &&
      h(
        "p",
        {},
        "Its home is ",
        name(home),
        ", which it left while that was down or drained. ",
        h("code", {}, "sasori rebalance"),
        " brings it back.",
      ),
    desired.unroutableProducer !== undefined &&
      h(
        "p",
        { class: "wrong" },
        icon("warn"),
        "Its newest word in PuppetDB came from ",
        name(desired.unroutableProducer),
        ", for which HAProxy has no server. Its old route stays.",
      ),
    desired.heldBy !== undefined &&
      h(
        "p",
        { class: "wrong" },
        icon("warn"),
        "PuppetDB no longer lists it. Its removal waits for the approval of plan ",
        h("code", {}, desired.heldBy),
        ".",
      ),
    h("h4", {}, "Earlier moves"),
    moves.length === 0
      ? h("p", { class: "quiet" }, "None that sasori remembers.")
      : renderMoveList(moves.slice(0, 20), now, true),
    h("h4", {}, "Move it by hand"),
    renderRegister(state, story.certname, desired.source === "registration" || desired.source === "learned"),
  ];
}

function renderWhy({ desired }: Story, now: number): Node {
  const { master, source, since } = desired;
  if (master === undefined) {
    return h(
      "p",
      { class: "why" },
      "It is not in the map: a request for it is answered with 404, or healed.",
    );
  }
  const [why, note] = source === undefined ? [] : SOURCE_REASONS[source];
  const when = since ? [", at ", moment(since, `${clock(since, now)} (${age(since, now)})`)] : "";
  return h("p", { class: "why" }, [
    "Goes to ",
    h("strong", {}, name(master)),
    why && `, because ${why}`,
    when,
    ". ",
    note,
  ]);
}

type Failure = NonNullable<Story["desired"]["failure"]>;

/** How HAProxy sees the node's master; undefined where nobody says. */
const healthIn = ({ health }: Story, haproxy: string) => health.find((one) => one.haproxy === haproxy)?.state;

function renderStop(
  where: string,
  master: string | null | undefined,
  wanted: string | undefined,
  failure?: Failure,
  health?: Story["health"][number]["state"],
): Node {
  const right = failure === undefined && master === (wanted ?? null);
  return h(
    "li",
    { class: right ? "good" : "bad" },
    h("span", { class: "where" }, name(where)),
    h(
      "span",
      { class: "master" },
      icon(right ? "good" : "bad"),
      failure !== undefined ? "cannot say" : (master ?? "not in there"),
      !right && failure === undefined && h("span", { class: "unseen" }, " (not as wanted)"),
    ),
    failure !== undefined && h("code", { title: failure.message }, failure.code),
    health !== undefined &&
      h("span", { class: health === "down" ? "wrong" : "quiet" }, `sees its master ${health}`),
  );
}

/** A form that moves a node, or any node when `certname` is undefined. */
function renderRegister(state: State, certname: string | undefined, own = false): Node {
  const masters = mastersOf(state);
  return h(
    "form",
    { class: "register", "data-key": "register", "data-do": "register", "data-certname": certname },
    certname === undefined &&
      field(
        "Node",
        h("input", {
          id: "new-node",
          name: "certname",
          required: true,
          autocomplete: "off",
          spellcheck: "false",
          autocapitalize: "none",
          placeholder: "node1.example.com",
        }),
      ),
    field(
      "Master",
      h(
        "select",
        { id: certname === undefined ? "new-master" : "story-master", name: "master", required: true },
        masters.map((master) => h("option", { value: master, "data-key": master }, master)),
      ),
    ),
    h(
      "button",
      { "aria-disabled": state.busy ? "true" : undefined },
      state.busy === "register" ? "Registering …" : "Register",
    ),
    own &&
      certname !== undefined &&
      h(
        "button",
        {
          type: "button",
          "data-do": "end",
          "data-certname": certname,
          "aria-disabled": state.busy ? "true" : undefined,
        },
        "Leave it to PuppetDB again",
      ),
  );
}

const field = (label: string, control: HTMLElement) =>
  h("span", { class: "field" }, h("label", { for: control.id }, label), control);

/** The names of HAProxy's servers. */
function mastersOf({ status, masters }: State): string[] {
  const told =
    status?.targets.flatMap(({ servers }) => servers ?? []).map(({ name: server }) => server) ?? [];
  const listed =
    masters.value?.masters.filter(({ servers }) => servers.length > 0).map(({ master }) => master) ?? [];
  return [...new Set([...listed, ...told])].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
}

export function renderRegistrations(state: State): Node[] {
  const { value, problem } = state.registrations;
  const now = nowOf(state);
  const nodes = value?.nodes ?? [];
  return [
    h("h2", {}, "Registrations"),
    h(
      "p",
      { class: "quiet" },
      "Routes that were set by hand. Each ends by itself as soon as PuppetDB has a newer word.",
    ),
    nodes.length > 0 &&
      h(
        "ul",
        { class: "registrations" },
        nodes.map(({ certname, master, since }) =>
          h(
            "li",
            { "data-key": certname },
            h("span", { class: "who" }, nodeLink(certname)),
            h("span", { class: "route" }, icon("arrow"), h("span", { class: "unseen" }, "to "), name(master)),
            h(
              "span",
              { class: "quiet" },
              since === null ? SOURCE_WORDS.registration : moment(since, age(since, now)),
            ),
            h(
              "button",
              {
                class: "plain",
                "data-do": "end",
                "data-certname": certname,
                "aria-label": `End the registration of ${certname}`,
                "aria-disabled": state.busy ? "true" : undefined,
              },
              "End",
            ),
          ),
        ),
      ),
    value?.next != null && h("p", { class: "quiet" }, `These are the first ${count(nodes.length)}.`),
    value !== undefined && nodes.length === 0 && h("p", {}, "None."),
    problem !== undefined && h("p", { class: "wrong" }, icon("warn"), problem),
    renderRegister(state, undefined),
  ].filter((node) => node !== false);
}
