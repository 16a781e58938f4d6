// The page's calls to sasori: reads, and changes, which carry the bearer token where one is wanted.
// Promises: every call has a deadline; a change that needs the token asks the reader for it, says if it is wrong, and
// is then made; the token lives as long as this tab's session and goes nowhere else.

export const nodePath = (certname: string) => `nodes/${encodeURIComponent(certname)}`;

/** Longer than any read takes; a pass or a registration may wait for a stalled HAProxy first. */
const READ_DEADLINE_MS = 8_000;
const CHANGE_DEADLINE_MS = 120_000;
const TOKEN_KEY = "sasori-token";

/** sasori answered with an error; `message` is the text of its answer. */
export class Refusal extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** The reader closed the dialog that asks for the token. */
export class Cancelled extends Error {}

export interface Answer<T> {
  value: T;
  /** sasori's clock minus this machine's, in whole seconds. */
  clockSkewMs: number;
}

/** Reads a resource below `/api/v1/`. Throws a Refusal, or any other error when sasori cannot be reached. */
export async function read<T>(resource: string): Promise<Answer<T>> {
  const response = await fetch(`api/v1/${resource}`, {
    signal: AbortSignal.timeout(READ_DEADLINE_MS),
    cache: "no-store",
  });
  const value = await answerOf<T>(response);
  const date = Date.parse(response.headers.get("date") ?? "");
  const skew = date - Date.now();
  // The header has whole seconds, so a difference of less than two means that the clocks agree.
  return { value, clockSkewMs: Math.abs(skew) > 2_000 ? skew : 0 };
}

/**
 * Changes something. `askToken` is called with `wrong: true` when sasori refused the token that it was given; it
 * resolves with undefined when the reader does not want to go on.
 */
export async function change<T>(
  method: "POST" | "PUT" | "DELETE",
  resource: string,
  body: unknown,
  askToken: (wrong: boolean) => Promise<string | undefined>,
): Promise<T> {
  let token = sessionStorage.getItem(TOKEN_KEY) ?? undefined;
  for (;;) {
    const response = await fetch(`api/v1/${resource}`, {
      method,
      headers: {
        ...(body !== undefined && { "content-type": "application/json" }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(CHANGE_DEADLINE_MS),
    });
    if (response.status !== 401) {
      if (token !== undefined) sessionStorage.setItem(TOKEN_KEY, token);
      return answerOf<T>(response);
    }
    sessionStorage.removeItem(TOKEN_KEY);
    token = await askToken(token !== undefined);
    if (token === undefined) throw new Cancelled();
  }
}

async function answerOf<T>(response: Response): Promise<T> {
  const body: unknown = await response.json().catch(() => undefined);
  if (!response.ok || body === undefined) {
    // A change that is in force, but not yet in every target, is answered with 502 and the node's story.
    if (response.status === 502 && body instanceof Object && "certname" in body) return body as T;
    const detail = (body as { detail?: unknown } | undefined)?.detail;
    throw new Refusal(
      response.status,
      typeof detail === "string" ? detail : `sasori answered with status ${response.status}`,
    );
  }
  return body as T;
}

/** The message for the reader about a call that failed. */
export function messageOf(error: unknown): string {
  if (error instanceof Refusal) return error.message;
  if (error instanceof DOMException && error.name === "TimeoutError") return "sasori did not answer in time";
  return "sasori cannot be reached";
}
