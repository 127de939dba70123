/* The grid of hits. One Tab reaches it, and the arrow keys move between its tiles. It does not know searches. */

import { element } from "./element.js";
import { original, thumbnail } from "./server.js";
import { caption, percent } from "./words.js";

const SIZE = 256;

export class Grid {
  /** `open(place)` is called when a tile is chosen. */
  constructor(list, open) {
    this.list = list;
    this.tiles = new Map(); // id → its <li>
    list.addEventListener("click", (event) => {
      const place = this.#place(event.target);
      // with a modifier key the browser opens the file in a tab, as for any link
      if (place < 0 || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      this.#rove(place);
      open(place);
    });
    list.addEventListener("focusin", (event) => {
      const place = this.#place(event.target);
      if (place >= 0) this.#rove(place);
    });
    list.addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Show hits. Existing tiles are used again, so that nothing flickers while the user types. */
  show(hits, { dim = () => false } = {}) {
    const focused = this.list.contains(document.activeElement) ? this.#place(document.activeElement) : -1;
    const focusedItem = focused >= 0 ? this.list.children[focused] : null;
    const before = this.tiles;
    this.tiles = new Map();
    const items = hits.map((hit) => {
      const item = before.get(hit.id) ?? tile(hit);
      fill(item, hit, dim(hit));
      this.tiles.set(hit.id, item);
      return item;
    });
    const present = [...this.list.children];
    // a tile that is removed and inserted again would reload and scroll
    if (present.every((item, at) => item === items[at])) this.list.append(...items.slice(present.length));
    else this.list.replaceChildren(...items);
    this.#rove(Math.max(0, focusedItem ? items.indexOf(focusedItem) : 0));
    if (focusedItem && !focusedItem.contains(document.activeElement)) {
      this.focus(Math.max(0, items.indexOf(focusedItem)));
    }
  }

  /** Show grey boxes where pictures will be. */
  wait(places) {
    if (this.list.children.length) return;
    this.list.replaceChildren(
      ...Array.from({ length: places }, () => element("li", { class: "waiting", "aria-hidden": "true" })),
    );
  }

  clear() {
    this.tiles.clear();
    this.list.replaceChildren();
  }

  focus(place) {
    this.#link(place)?.focus();
  }

  #link(place) {
    return this.list.children[place]?.querySelector("a") ?? null;
  }

  #place(target) {
    const item = target instanceof Element ? target.closest("li") : null;
    return item?.querySelector("a") ? [...this.list.children].indexOf(item) : -1;
  }

  #rove(place) {
    for (const link of this.list.querySelectorAll('a[tabindex="0"]')) link.tabIndex = -1;
    const link = this.#link(place);
    if (link) link.tabIndex = 0;
  }

  #walk(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const here = this.#place(event.target);
    const last = this.tiles.size - 1;
    if (here < 0) return;
    const columns = getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
    const row = (place) => Math.floor(place / columns);
    const target = {
      ArrowLeft: here - 1,
      ArrowRight: here + 1,
      ArrowUp: here - columns,
      // the last row may be shorter: then its last tile
      ArrowDown: row(here) < row(last) ? Math.min(here + columns, last) : here,
      Home: 0,
      End: last,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    if (target >= 0 && target <= last) this.focus(target);
  }
}

function tile(hit) {
  const image = element("img", { width: SIZE, height: SIZE, loading: "lazy", decoding: "async" });
  const words = element("span", { class: "words", "aria-hidden": "true" });
  const item = element("li", null, element("a", { class: "tile", tabindex: -1 }, image, words));
  image.addEventListener("load", () => item.classList.add("loaded"));
  image.addEventListener("error", () => item.classList.add("broken"));
  return item;
}

function fill(item, hit, dim) {
  const link = item.firstChild;
  const [image, words] = link.children;
  const address = thumbnail(hit, SIZE);
  const title = caption(hit);
  const confidence = typeof hit.confidence === "number" ? percent(hit.confidence) : null;
  const href = original(hit);
  if (href) link.setAttribute("href", href);
  image.alt = title;
  words.replaceChildren(element("span", null, title), ...(confidence ? [element("b", null, confidence)] : []));
  item.classList.toggle("dim", dim);
  if (!address) item.classList.add("broken");
  else if (image.src !== address) image.src = address;
}
