// The page as a whole: the top bar, the cards, and the result of the reader's last action.

import type { ComponentChildren, FunctionComponent } from "preact";
import { useErrorBoundary } from "preact/hooks";
import css from "./app.module.css";
import { HaproxysCard } from "./haproxys.js";
import { MastersCard } from "./masters.js";
import { MovesCard } from "./moves.js";
import { usePage } from "./page.js";
import { PassesCard } from "./passes.js";
import { RegistrationsCard } from "./register.js";
import { ReplicasCard } from "./replicas.js";
import { Search } from "./search.js";
import { StatusCard } from "./status.js";
import { Icon, Problem } from "./ui.js";

const LINK_WORDS = { live: "live", connecting: "connecting", lost: "not connected" };

export function App() {
  const { state } = usePage();
  return (
    <div class={css.page}>
      <a class={css.skip} href="#search">
        To the search for a node
      </a>
      <TopBar />
      <main class={css.main} data-link={state.link.kind}>
        {parts(StatusCard, Search)}
        <div class={css.columns}>
          <div class={css.column}>{parts(MastersCard, MovesCard)}</div>
          <div class={css.column}>{parts(HaproxysCard, ReplicasCard, PassesCard, RegistrationsCard)}</div>
        </div>
      </main>
      <Notice />
    </div>
  );
}

function TopBar() {
  const { state, actions } = usePage();
  const { link, status, busy } = state;
  return (
    <header class={css.top}>
      <a class={css.brand} href="./">
        <img src="icon.svg" alt="" />
        sasori
      </a>
      <span class={css.version}>{status?.version}</span>
      <span class={css.link} data-link={link.kind}>
        {LINK_WORDS[link.kind]}
      </span>
      <button
        type="button"
        data-kind="primary"
        aria-disabled={busy !== undefined}
        onClick={() => void actions.sync("sync")}
      >
        {busy === "sync" ? "Syncing …" : "Sync now"}
      </button>
    </header>
  );
}

function Notice() {
  const { state, actions } = usePage();
  const { notice } = state;
  return (
    <div class={css.notice} id="notice" role="status" aria-live="polite">
      {notice !== undefined && (
        <p data-tone={notice.good ? "good" : "bad"}>
          <Icon sign={notice.good ? "good" : "bad"} />
          <span>{notice.text}</span>
          <button type="button" data-kind="plain" onClick={actions.dismiss}>
            Dismiss
          </button>
        </p>
      )}
    </div>
  );
}

const parts = (...cards: FunctionComponent[]) =>
  cards.map((Card) => (
    <ErrorBoundary key={Card}>
      <Card />
    </ErrorBoundary>
  ));

/** A bug in one card must not break the others. It is reported in the console. */
function ErrorBoundary({ children }: { children: ComponentChildren }) {
  const [error] = useErrorBoundary(reportError);
  if (error !== undefined) return <Problem>This part of the page has a bug. Reload the page.</Problem>;
  return <>{children}</>;
}
