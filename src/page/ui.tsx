// The small things of which every part of the page is made: signs, names, times, sasori's own sentences, and the card.
// Promises: a name from outside is shown as text, whatever it contains; its writing direction does not affect the text
// around it.

import type { ComponentChildren } from "preact";
import type { Tone } from "./headline.js";
import { usePage } from "./page.js";
import type { Part } from "./state.js";
import css from "./ui.module.css";
import { clock, shortName, WHOLE_TIME } from "./words.js";

/** Each sign has a word beside it, because screen readers skip it. */
const SIGNS = {
  good: "M4 12.5 9.5 18 20 6.5",
  bad: "M6 6 18 18M18 6 6 18",
  warn: "M12 4v10M12 19v.5",
  busy: "M12 6v6l4 3",
  stale: "M4 4 20 20M8.5 16a5 5 0 0 1 4-2M5 12a10 10 0 0 1 4-2.5M13 9a10 10 0 0 1 6 3M12 19.5v.5",
  arrow: "M4 12h15M13 6l6 6-6 6",
  search: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13ZM15.5 15.5 21 21",
} as const;

export type Sign = keyof typeof SIGNS;

export const Icon = ({ sign }: { sign: Sign }) => (
  <svg class={css.icon} data-sign={sign} viewBox="0 0 24 24" aria-hidden="true">
    <path d={SIGNS[sign]} />
  </svg>
);

/** For screen readers only. */
export const Unseen = ({ children }: { children: ComponentChildren }) => (
  <span class={css.unseen}>{children}</span>
);

export const Quiet = ({ children }: { children: ComponentChildren }) => <p class={css.quiet}>{children}</p>;

export const Problem = ({ children }: { children: ComponentChildren }) => (
  <p class={css.problem}>
    <Icon sign="warn" />
    {children}
  </p>
);

/** A word about the state of something. */
export const StateWord = ({
  tone,
  title,
  children,
}: {
  tone: Tone;
  title?: string;
  children: ComponentChildren;
}) => (
  <span class={css.state} data-tone={tone} title={title}>
    <Icon sign={tone} />
    {children}
  </span>
);

export const Badge = ({ children }: { children: ComponentChildren }) => (
  <span class={css.badge}>{children}</span>
);

/** A name from outside. A line may break after its dots. */
export const Name = ({ children: name }: { children: string }) => (
  <bdi class={css.name}>
    {name.split(/(?<=\.)/).map((part, index) => (index === 0 ? part : [<wbr key={part} />, part]))}
  </bdi>
);

/** A node's name that opens its story. */
export const NodeLink = ({ children: certname }: { children: string }) => (
  <a class={css.node} href={`#node=${encodeURIComponent(certname)}`}>
    <Name>{certname}</Name>
  </a>
);

/** A master without the domain that all masters share; the card "Masters" shows that domain. */
export const Master = ({ children: master }: { children: string }) => (
  <span title={master}>
    <Name>{shortName(master, usePage().domain)}</Name>
  </span>
);

/** `master1 → master2`; if there is no `to`, the word `none` is shown. */
export const Route = ({ from, to, none }: { from: string | null; to: string | null; none: string }) => (
  <span>
    {from === null ? "new" : <Master>{from}</Master>}
    <Icon sign="arrow" />
    <Unseen> to </Unseen>
    {to === null ? none : <Master>{to}</Master>}
  </span>
);

/** A time whose tooltip has the whole date. */
export const Time = ({ at, children }: { at: string; children: string }) => (
  <time dateTime={at} title={WHOLE_TIME.format(new Date(at))}>
    {children}
  </time>
);

/** A line may break between two words of a command, but not after the hyphens of an option. */
export const Command = ({ children: text }: { children: string }) => (
  <code>
    {text.split(/(--\S+)/).map((part, index) => (index % 2 ? <span class={css.option}>{part}</span> : part))}
  </code>
);

const TIME_OR_COMMAND = /(\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]{2,6}Z|`[^`]+`)/;

/** A message of sasori as a sentence: times are in the reader's time zone, text in backticks is a command. */
export const Prose = ({ children: text, now }: { children: string; now: number }) => (
  <bdi class={css.name}>
    {text
      .replace(/^(?!sasori )[a-z]+(?= )/, (word) => word.slice(0, 1).toUpperCase() + word.slice(1))
      .replace(/(?<![.?!…])$/, ".")
      .split(TIME_OR_COMMAND)
      .map((part, index) => {
        if (index % 2 === 0) return part;
        if (part.startsWith("`")) return <Command>{part.slice(1, -1)}</Command>;
        return <Time at={part}>{clock(part, now)}</Time>;
      })}
  </bdi>
);

interface CardProps {
  label: string;
  note?: string;
  action?: ComponentChildren;
  children: ComponentChildren;
}

/** A section of the page, with its heading and an action. */
export const Card = ({ label, note, action, children }: CardProps) => (
  <section class={css.card} aria-label={label}>
    <div class={css.title}>
      <h2>
        {label}
        {note !== undefined && <small>{note}</small>}
      </h2>
      {action}
    </div>
    {children}
  </section>
);

/** Shows a part of the state once it was read, and why its newest answer is missing. */
export const Read = <T,>({
  value,
  problem,
  children,
}: Part<T> & { children: (value: T) => ComponentChildren }) =>
  value === undefined ? (
    <Quiet>{problem ?? "Waiting for the first answer."}</Quiet>
  ) : (
    <>
      {children(value)}
      {problem !== undefined && <Problem>{`not read again: ${problem}`}</Problem>}
    </>
  );
