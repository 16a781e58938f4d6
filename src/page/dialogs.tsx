// The page's two questions: the token, and "really?". Both are modal, close on Escape, and give the focus back.

import { type ComponentChildren, render } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import css from "./dialogs.module.css";

/** Asks for the bearer token; undefined when the reader does not give one. */
export async function askToken(wrong: boolean): Promise<string | undefined> {
  let token = "";
  const yes = await ask("A token is needed", "Continue", "primary", [
    <p key="note" id="token-note" role={wrong ? "alert" : undefined} data-wrong={wrong}>
      {wrong
        ? "sasori refused that token. Try again."
        : "Changes need the token in the file that SASORI_API_TOKEN_FILE names."}
    </p>,
    <label key="label" for="token">
      Token
    </label>,
    <input
      key="token"
      id="token"
      type="password"
      autocomplete="off"
      required
      aria-describedby="token-note"
      aria-invalid={wrong}
      onInput={({ currentTarget }) => {
        token = currentTarget.value.trim();
      }}
    />,
    <p key="kept">It is kept until this tab is closed.</p>,
  ]);
  return yes ? token : undefined;
}

/** Asks before something that must not be done by mistake. */
export const confirm = (title: string, yes: string, body: ComponentChildren) =>
  ask(title, yes, "danger", body);

function ask(
  title: string,
  yes: string,
  kind: "primary" | "danger",
  body: ComponentChildren,
): Promise<boolean> {
  const place = document.body.appendChild(document.createElement("div"));
  return new Promise((resolve) => {
    const close = (answer: boolean) => {
      render(null, place);
      place.remove();
      resolve(answer);
    };
    render(
      <Question title={title} yes={yes} kind={kind} close={close}>
        {body}
      </Question>,
      place,
    );
  });
}

interface QuestionProps {
  title: string;
  yes: string;
  kind: "primary" | "danger";
  close(answer: boolean): void;
  children: ComponentChildren;
}

function Question({ title, yes, kind, close, children }: QuestionProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const cancel = useRef<HTMLButtonElement>(null);
  useLayoutEffect(() => {
    dialog.current?.showModal();
    // Otherwise a second Enter would confirm it by mistake.
    if (kind === "danger") cancel.current?.focus();
  }, [kind]);
  return (
    <dialog
      ref={dialog}
      class={css.dialog}
      aria-labelledby="question"
      onClose={() => close(dialog.current?.returnValue === "yes")}
    >
      <form
        onSubmit={(event) => {
          event.preventDefault();
          dialog.current?.close("yes");
        }}
      >
        <h2 id="question">{title}</h2>
        {children}
        <div class={css.buttons}>
          <button type="button" ref={cancel} onClick={() => dialog.current?.close()}>
            Cancel
          </button>
          <button type="submit" data-kind={kind}>
            {yes}
          </button>
        </div>
      </form>
    </dialog>
  );
}
