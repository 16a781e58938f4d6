// Counts as people read them: in messages, on the command line and on the page.

export const number = (value: number) => value.toLocaleString("en-US");

/** `1 node`, `1,200 nodes`. */
export const counted = (value: number, one: string, many = `${one}s`) =>
  `${number(value)} ${value === 1 ? one : many}`;
