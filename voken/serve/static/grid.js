/* The pictures found: tiles that one Tab reaches and arrow keys walk through. It knows hits, not searches. */

import { element } from "./element.js";
import { original, thumbnail } from "./server.js";
import { caption, percent } from "./words.js";

const SIZE = 256;

export class Grid {
  /** `open(place)` is called for the tile that was chosen. */
  constructor(list, open) {
    this.list = list;
    this.tiles = new Map(); // id → its <li>
    list.addEventListener("click", (event) => {
      const place = this.#place(event.target);
      // with a modifier a browser opens the original in a tab, as for any link
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

  /** Tiles of pictures that stay are kept, so that nothing flickers while somebody types. */
  show(hits, { dim = () => false } = {}) {
    const focused = this.list.contains(document.activeElement) ? this.#place(document.activeElement) : -1;
    const had = focused >= 0 ? this.list.children[focused] : null;
    const before = this.tiles;
    this.tiles = new Map();
    const items = hits.map((hit) => {
      const item = before.get(hit.id) ?? tile(hit);
      fill(item, hit, dim(hit));
      this.tiles.set(hit.id, item);
      return item;
    });
    const there = [...this.list.children];
    // what is only added to is not taken out: a picture taken out and put back loads and scrolls again
    if (there.every((item, at) => item === items[at])) this.list.append(...items.slice(there.length));
    else this.list.replaceChildren(...items);
    this.#rove(Math.max(0, had ? items.indexOf(had) : 0));
    if (had && !had.contains(document.activeElement)) this.focus(Math.max(0, items.indexOf(had)));
  }

  /** Grey boxes where pictures will be. */
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
    const there = {
      ArrowLeft: here - 1,
      ArrowRight: here + 1,
      ArrowUp: here - columns,
      // into a last row that is shorter: to its end
      ArrowDown: row(here) < row(last) ? Math.min(here + columns, last) : here,
      Home: 0,
      End: last,
    }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    if (there >= 0 && there <= last) this.focus(there);
  }
}

function tile(hit) {
  const image = element("img", { width: SIZE, height: SIZE, loading: "lazy", decoding: "async" });
  const words = element("span", { class: "words", "aria-hidden": "true" });
  const item = element("li", null, element("a", { class: "tile", tabindex: -1 }, image, words));
  image.addEventListener("load", () => item.classList.add("there"));
  image.addEventListener("error", () => item.classList.add("broken"));
  return item;
}

function fill(item, hit, dim) {
  const link = item.firstChild;
  const [image, words] = link.children;
  const address = thumbnail(hit, SIZE);
  const said = caption(hit);
  const sure = typeof hit.confidence === "number" ? percent(hit.confidence) : null;
  const href = original(hit);
  if (href) link.setAttribute("href", href);
  image.alt = said;
  words.replaceChildren(element("span", null, said), ...(sure ? [element("b", null, sure)] : []));
  item.classList.toggle("dim", dim);
  if (!address) item.classList.add("broken");
  else if (image.src !== address) image.src = address;
}
