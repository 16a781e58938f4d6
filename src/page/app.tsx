// The page as a whole: the line at the top, the parts, and how the last thing that the reader did went.

import { Component, type ComponentChildren, type FunctionComponent } from "preact";
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
    <Part key={Card}>
      <Card />
    </Part>
  ));

/** A bug in one part must not take the others away. */
class Part extends Component<{ children: ComponentChildren }, { failed: boolean }> {
  override state = { failed: false };

  override componentDidCatch(error: unknown): void {
    reportError(error); // In the console.
    this.setState({ failed: true });
  }

  override render() {
    return this.state.failed ? (
      <Problem>This part of the page has a bug. Reload the page.</Problem>
    ) : (
      this.props.children
    );
  }
}
