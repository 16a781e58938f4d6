// Routes that people set by hand: the list, and the forms that set and end them.

import type { ComponentChildren } from "preact";
import { usePage } from "./page.js";
import css from "./register.module.css";
import { mastersOf, nowOf } from "./state.js";
import { Card, Master, NodeLink, Quiet, Read, Time } from "./ui.js";
import { age, number, remarksOf, shortName } from "./words.js";

/** The API's limit. */
const MAX_REMARK = 200;

/** Moves the given node, or asks which node. `isOwn`: its route was registered or learned, so it can be ended. */
export function RegisterForm({ certname, isOwn = false }: { certname?: string; isOwn?: boolean }) {
  const { state, actions, domain } = usePage();
  const busy = state.busy !== undefined;

  async function submit(event: SubmitEvent): Promise<void> {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const text = (name: string) => String(new FormData(form).get(name) ?? "").trim();
    const node = certname ?? text("certname").toLowerCase();
    const remarks = { by: text("by"), reason: text("reason") };
    if (await actions.register({ certname: node, master: text("master"), ...remarks })) form.reset();
  }

  return (
    <form class={css.form} onSubmit={submit}>
      {certname === undefined && (
        <Field label="Node">
          <input
            id="new-node"
            name="certname"
            required
            autocomplete="off"
            autocapitalize="none"
            spellcheck={false}
            placeholder="node1.example.com"
          />
        </Field>
      )}
      <Field label="Master">
        <select name="master" required>
          {mastersOf(state).map((master) => (
            <option key={master} value={master}>
              {shortName(master, domain)}
            </option>
          ))}
        </select>
      </Field>
      <Field label="Your name (optional)">
        <input name="by" maxLength={MAX_REMARK} autocomplete="username" />
      </Field>
      <Field label="Reason (optional)">
        <input name="reason" maxLength={MAX_REMARK} autocomplete="off" />
      </Field>
      <div class={css.buttons}>
        <button type="submit" aria-disabled={busy}>
          {state.busy === "register" ? "Registering …" : "Register"}
        </button>
        {isOwn && certname !== undefined && (
          <button
            type="button"
            data-do="end"
            aria-disabled={busy}
            onClick={() => void actions.endRegistration(certname)}
          >
            Let PuppetDB decide again
          </button>
        )}
      </div>
    </form>
  );
}

const Field = ({ label, children }: { label: string; children: ComponentChildren }) => (
  // biome-ignore lint/a11y/noLabelWithoutControl: the control is its child
  <label class={css.field}>
    {label}
    {children}
  </label>
);

export function RegistrationsCard() {
  const { state, actions } = usePage();
  return (
    <Card label="Registrations">
      <Quiet>Routes set by hand. Each ends by itself when PuppetDB has something newer.</Quiet>
      <Read {...state.registrations}>
        {({ nodes, next }) => (
          <>
            {nodes.length === 0 && <p>None.</p>}
            <ul class={css.list} hidden={nodes.length === 0}>
              {nodes.map(({ certname, master, since, ...remarks }) => (
                <li key={certname}>
                  <div>
                    <NodeLink>{certname}</NodeLink>
                    <small>
                      to <Master>{master}</Master>
                      {since !== null && (
                        <>
                          , <Time at={since}>{age(since, nowOf(state))}</Time>
                        </>
                      )}
                      {remarksOf(remarks)}
                    </small>
                  </div>
                  <button
                    type="button"
                    data-kind="plain"
                    data-do="end"
                    aria-label={`End the registration of ${certname}`}
                    aria-disabled={state.busy !== undefined}
                    onClick={() => void actions.endRegistration(certname)}
                  >
                    End
                  </button>
                </li>
              ))}
            </ul>
            {next !== null && (
              <Quiet>{`There are more than ${number(nodes.length)}; these are the first.`}</Quiet>
            )}
          </>
        )}
      </Read>
      <RegisterForm />
    </Card>
  );
}
