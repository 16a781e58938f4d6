// Where does a node go? The search, what it has found, and the story of the one that was chosen.

import { useRef } from "preact/hooks";
import { usePage } from "./page.js";
import css from "./search.module.css";
import { Story } from "./story.js";
import { Icon, Master, NodeLink, Problem, Quiet, StateWord, Unseen } from "./ui.js";
import { number } from "./words.js";

const TYPING_MS = 150;

export function Search() {
  const { state, actions } = usePage();
  const typing = useRef<number | undefined>(undefined);
  const textOf = (input: HTMLInputElement) => input.value.trim().toLowerCase();
  return (
    <section class={css.find} aria-label="A node">
      <search>
        <form
          onSubmit={(event) => {
            event.preventDefault();
            window.clearTimeout(typing.current);
            const input = event.currentTarget.querySelector("input");
            if (input !== null) void actions.openFirst(textOf(input));
          }}
        >
          <label class={css.field}>
            <Unseen>Where does a node go?</Unseen>
            <Icon sign="search" />
            <input
              id="search"
              type="search"
              maxLength={253}
              placeholder="Where does a node go? Part of its name"
              autocomplete="off"
              autocapitalize="none"
              spellcheck={false}
              onInput={({ currentTarget }) => {
                window.clearTimeout(typing.current);
                typing.current = window.setTimeout(
                  () => void actions.search(textOf(currentTarget)),
                  TYPING_MS,
                );
              }}
            />
          </label>
        </form>
      </search>
      {state.story === undefined ? <Found /> : <Story key={state.story.certname} opened={state.story} />}
    </section>
  );
}

function Found() {
  const { text, found } = usePage().state.search;
  if (text === "") return null;
  const { value, problem } = found;
  if (problem !== undefined) return <Problem>{problem}</Problem>;
  if (value === undefined) return <Quiet>Looking …</Quiet>;
  const { nodes, next, unroutable = [] } = value;
  const all = nodes.length + unroutable.length;
  const exact = [...nodes, ...unroutable].some(({ certname }) => certname === text);
  const summary =
    next === null
      ? `${number(all)} found.`
      : `More than ${number(nodes.length)} found. Type more to see fewer.`;
  return (
    <div class={css.found}>
      <p role="status">
        {all === 0 ? "No node has that in its name. " : `${summary} `}
        {!exact && text.includes(".") && (
          <a href={`#node=${encodeURIComponent(text)}`}>Look up exactly this name</a>
        )}
      </p>
      <ul>
        {unroutable.map(({ certname, producer }) => (
          <li key={certname}>
            <NodeLink>{certname}</NodeLink>
            <StateWord tone="bad" title={`HAProxy has no server for ${producer}`}>
              404: no route
            </StateWord>
          </li>
        ))}
        {nodes.map(({ certname, master }) => (
          <li key={certname}>
            <NodeLink>{certname}</NodeLink>
            <Master>{master}</Master>
          </li>
        ))}
      </ul>
    </div>
  );
}
