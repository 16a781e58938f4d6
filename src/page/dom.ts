// How the page gets its elements: `h` makes them, `morph` brings what is on the screen to what was made.
// Promises: every text is a text node, whatever it holds; focus, selection, open details and scroll positions survive a
// rendering, because elements that stay are changed and not replaced. Never: innerHTML, style attributes (the
// Content-Security-Policy forbids them), listeners (main.ts has them all).

type Attributes = Record<string, string | number | boolean | undefined>;
export type Child = Node | string | number | false | undefined | null | readonly Child[];

/** An element. `true` is an empty attribute, `false` and `undefined` none; a name with `--` is a CSS variable. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  setAttributes(element, attributes);
  append(element, children);
  return element;
}

/** The same for SVG. */
export function svg(tag: string, attributes: Attributes = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(element, attributes);
  append(element, children);
  return element;
}

function setAttributes(element: HTMLElement | SVGElement, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("--")) element.style.setProperty(name, String(value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

function append(parent: Element, children: readonly Child[]): void {
  for (const child of children) {
    if (child === false || child === undefined || child === null) continue;
    if (Array.isArray(child)) append(parent, child as readonly Child[]);
    else parent.append(child instanceof Node ? child : String(child));
  }
}

/** Whose state is the reader's and not ours. */
const READERS_OWN = new Set(["style", "open"]);

/**
 * Makes the children of `parent` equal to `wanted`. Elements with the same `data-key` are the same thing and are not
 * replaced; what is inside of an element with `data-keep` is left alone.
 */
export function morph(parent: Element, wanted: readonly Node[]): void {
  const keys = new Set(wanted.map(keyOf));
  const keyed = new Map<string, ChildNode>();
  for (const child of [...parent.childNodes]) {
    const key = keyOf(child);
    if (key === undefined) continue;
    if (keys.has(key) && !keyed.has(key)) keyed.set(key, child);
    else child.remove();
  }
  let at = parent.firstChild;
  for (const node of wanted) {
    const key = keyOf(node);
    const old = key === undefined ? nextSame(at, node) : keyed.get(key);
    if (old && isSame(old, node)) {
      // What stood before it is gone, unless it has a key and comes later. To move this one instead would take the
      // focus out of it.
      while (at !== null && at !== old && keyOf(at) === undefined) at = removed(at);
      if (old === at) at = at.nextSibling;
      else parent.insertBefore(old, at);
      update(old, node);
    } else {
      parent.insertBefore(node, at);
    }
  }
  while (at !== null) at = removed(at);
}

/** The first of these and its followers that `node` may continue; one with a key is not passed over. */
function nextSame(at: ChildNode | null, node: Node): ChildNode | null {
  for (let old = at; old !== null && keyOf(old) === undefined; old = old.nextSibling) {
    if (isSame(old, node)) return old;
  }
  return null;
}

function removed(node: ChildNode): ChildNode | null {
  const next = node.nextSibling;
  node.remove();
  return next;
}

const keyOf = (node: Node) => (node instanceof HTMLElement ? node.dataset.key : undefined);
const isSame = (old: Node, node: Node) => old.nodeName === node.nodeName && keyOf(old) === keyOf(node);

function update(old: Node, node: Node): void {
  if (!(old instanceof Element) || !(node instanceof Element)) {
    if (old.nodeValue !== node.nodeValue) old.nodeValue = node.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!READERS_OWN.has(name) && !node.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...node.attributes]) {
    if (!READERS_OWN.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (
    isStyled(old) &&
    isStyled(node) &&
    old.style.cssText !== node.style.cssText &&
    !("keep" in old.dataset)
  ) {
    old.style.cssText = node.style.cssText;
  }
  if (!node.hasAttribute("data-keep")) morph(old, [...node.childNodes]);
}

const CONTROLS = "a[href], button, input, select, summary";

/**
 * Draws, and where that removes the element that has the keyboard, gives it to a neighbour in the same section: to the
 * next control that does the same (the next row's button), else to the next one, else to the one before; and to
 * `otherwise` where nothing is left there.
 */
export function keepFocus(draw: () => void, otherwise: HTMLElement): void {
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
  for (const control of [...alike, ...next, ...controls.slice(0, at).reverse(), otherwise]) {
    control.focus({ preventScroll: true }); // One that is gone or hidden does not take it.
    if (document.activeElement === control) return;
  }
}

const isStyled = (node: Element): node is HTMLElement | SVGElement => "style" in node && "dataset" in node;
