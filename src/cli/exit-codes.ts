// The exit codes, and what each means: for --help, the man page and docs/reference.md.

export const EXIT = { done: 0, failed: 1, usage: 2, held: 3 } as const;

export const EXIT_CODES: readonly (readonly [code: string, meaning: string])[] = [
  ["0", "success"],
  ["1", "something failed"],
  ["2", "wrong configuration or usage"],
  ["3", "the guard holds changes until you approve them"],
];
