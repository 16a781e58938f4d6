// Files of NAME=value lines, as systemd and a shell read them.

/** The variables of such a file. A later line counts more. Comments do not count. */
export function parseVariables(text: string): Record<string, string> {
  const written = text.matchAll(/^(\w+)=(?:"((?:[^"\\]|\\[\s\S])*)"|'([^']*)'|(.*))$/gm);
  return Object.fromEntries(
    Array.from(written, ([, name, double, single, plain = ""]) => [
      name,
      double?.replace(/\\(["\\$`])/g, "$1") ?? single ?? plain.trim(),
    ]),
  );
}
