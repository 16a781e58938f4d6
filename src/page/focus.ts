// Where the keyboard focus goes when the control that had it disappears.

const CONTROLS = "a[href], button, input, select, summary";

/**
 * Draws. If that removes the focused element, the focus goes to a neighbour in the same section: to the next control
 * that does the same (the next row's button), otherwise to the next one, to the one before, or to the search.
 */
export function keepFocus(draw: () => void): void {
  const had = document.activeElement;
  const place = had?.closest("section") ?? document;
  const controls = [...place.querySelectorAll<HTMLElement>(CONTROLS)];
  const at = controls.indexOf(had as HTMLElement);
  draw();
  if (had === null || had.isConnected) return;
  const next = controls.slice(at + 1);
  const alike = next.filter(
    ({ dataset }) => at >= 0 && dataset.do && dataset.do === controls[at]?.dataset.do,
  );
  const search = document.getElementById("search");
  for (const control of [...alike, ...next, ...controls.slice(0, at).reverse(), search]) {
    control?.focus({ preventScroll: true }); // An element that is gone or hidden does not take it.
    if (document.activeElement === control) return;
  }
}
