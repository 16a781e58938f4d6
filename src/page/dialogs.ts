// The page's two questions: the token, and "really?". Both are modal, close on Escape, and give the focus back.

import { type Child, h } from "./dom.js";

let number = 0;

/** Asks for the bearer token; undefined when the reader does not give one. */
export function askToken(wrong: boolean): Promise<string | undefined> {
  const input = h("input", {
    id: "token",
    type: "password",
    autocomplete: "off",
    required: true,
    "aria-describedby": "token-note",
    "aria-invalid": wrong ? "true" : undefined,
  });
  const note = wrong
    ? h("p", { id: "token-note", class: "wrong", role: "alert" }, "sasori refused that token. Try again.")
    : h("p", { id: "token-note" }, "Changes need the token in the file that SASORI_API_TOKEN_FILE names.");
  return ask("A token is needed", "Go on", [
    note,
    h("label", { for: "token" }, "Token"),
    input,
    h("p", { class: "quiet" }, "It is kept until this tab is closed."),
  ]).then((yes) => (yes ? input.value.trim() : undefined));
}

/** Asks whether something that cannot be taken back shall be done. */
export const confirm = (title: string, yes: string, body: Child[]) => ask(title, yes, body, "danger");

function ask(title: string, yes: string, body: Child[], kind = "primary"): Promise<boolean> {
  number += 1;
  const titleId = `dialog-${number}`;
  const cancel = h("button", { type: "button" }, "Cancel");
  const form = h(
    "form",
    {},
    h("h2", { id: titleId }, title),
    body,
    h("div", { class: "buttons" }, cancel, h("button", { class: kind }, yes)),
  );
  const dialog = h("dialog", { "aria-labelledby": titleId }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    cancel.addEventListener("click", () => dialog.close());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close("yes");
    });
    dialog.showModal();
    // What cannot be taken back must not be done by one more Enter.
    if (kind === "danger") cancel.focus();
  });
}
