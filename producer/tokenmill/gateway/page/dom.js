// Small hands on the document: texts that change only when they differ, lists whose elements stay. Knows no fleet.

export const $ = (id) => document.getElementById(id);

export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

/** A figure with a small unit behind it. */
export function figure(name, value, unit = "") {
  const element = document.querySelector(`[data-figure="${name}"]`);
  const told = `${value}|${unit}`;
  if (element.dataset.told === told) return;
  element.dataset.told = told;
  element.replaceChildren(value, ...(unit ? [make("small", "", unit)] : []));
}

export function make(tag, className = "", content = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (content) element.textContent = content;
  return element;
}

/** Makes the children of `parent` those of `items`, by key; an element that stays is updated and keeps its focus. */
export function keyed(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let child = known.get(key);
    if (child === undefined) {
      child = create(item);
      child.dataset.key = key;
    }
    known.delete(key);
    update(child, item);
    if (child === place) place = place.nextElementSibling;
    else parent.insertBefore(child, place);
  }
  for (const child of known.values()) child.remove();
}
