/* Pictures in justified rows. Only those near the screen are in the page, so that tens of thousands scroll smoothly.
   One Tab reaches the mosaic, and the arrow keys move between its tiles. It does not know searches. */

import { element, icon } from "./element.js";
import { estimate, justify, proportion } from "./justify.js";
import { original, thumbnail } from "./server.js";
import { caption, count, month as monthName, percent } from "./words.js";

const NEAR = "100% 0px"; // how far from the screen pictures are put into the page
const PASSING = 70; // ms that a chunk must be near before it is loaded, so that a quick scroll loads little
const SIDES = [256, 512]; // of thumbnails
const LONG_PRESS = 450; // ms
const BAR = 90; // px at the top of the screen that are covered, or nearly so

export class Mosaic {
  /**
   * `open(place)` is called when a tile is chosen, `failed(error)` if pictures cannot be loaded. `selection` knows which
   * pictures are selected.
   */
  constructor(host, selection, { open, failed }) {
    this.host = host;
    this.selection = selection;
    this.open = open;
    this.failed = failed;
    this.list = null;
    this.chunks = [];
    this.current = 0; // the place that Tab reaches
    this.tiles = new Map(); // place → its <li>
    this.byElement = new Map();
    this.width = 0;
    this.observer = new IntersectionObserver((entries) => entries.forEach((entry) => this.#near(entry)), {
      rootMargin: NEAR,
    });
    new ResizeObserver(() => this.#resize()).observe(host);
    host.addEventListener("click", (event) => this.#click(event));
    host.addEventListener("focusin", (event) => this.#rove(this.#placeOf(event.target)));
    host.addEventListener("keydown", (event) => this.#key(event));
    this.#longPress();
  }

  get geometry() {
    const style = getComputedStyle(this.host);
    return {
      width: this.width,
      target: parseFloat(style.getPropertyValue("--row")) || 190,
      gap: parseFloat(style.getPropertyValue("--gap")) || 8,
    };
  }

  /** Show a list. Tiles of pictures that are there already are used again, so that nothing flickers. */
  show(list) {
    const focused = this.host.contains(document.activeElement) ? this.#placeOf(document.activeElement) : -1;
    const focusedId = focused >= 0 ? this.list?.at(focused)?.id : undefined;
    const before = new Map([...this.tiles].map(([place, item]) => [this.list?.at(place)?.id, item]));
    this.#forget();
    this.list = list;
    this.before = before;
    this.width = this.host.clientWidth;
    const geometry = this.geometry;
    let section = null;
    const sections = [];
    for (const chunk of list.chunks) {
      if (chunk.month === null || chunk.isFirst) {
        section = element("section", { class: "month" });
        if (chunk.month !== null) {
          const id = `m-${chunk.month}`;
          section.setAttribute("aria-labelledby", id);
          section.append(
            element("h2", { id }, monthName(chunk.month), " ", element("span", { class: "soft" }, count(chunk.ofMonth))),
          );
        }
        sections.push(section);
      }
      const label = chunk.month === null ? "Search results" : null;
      const part = { ...chunk, element: element("ul", { class: "tiles", "aria-label": label }), boxes: null, shown: [] };
      this.#size(part, estimate(chunk.count, geometry));
      this.byElement.set(part.element, part);
      section.append(part.element);
      this.chunks.push(part);
    }
    this.host.replaceChildren(...sections);
    // what is on the screen now must not wait for the observer
    if (this.chunks.length && list.at(0)) this.#fill(this.chunks[0]);
    for (const part of this.chunks) this.observer.observe(part.element);
    this.before = new Map();
    const again = focusedId === undefined ? -1 : list.placeOf(focusedId);
    this.#rove(Math.max(0, again));
    if (focused >= 0 && list.length) this.focus(Math.max(0, again), { scroll: again >= 0 });
  }

  /** Show grey boxes where pictures will be. */
  wait(places) {
    if (this.list) return;
    const box = () => element("li", { class: "waiting", "aria-hidden": "true" });
    this.host.replaceChildren(element("ul", { class: "waiting-tiles" }, ...Array.from({ length: places }, box)));
  }

  clear() {
    this.#forget();
    this.list = null;
    this.host.replaceChildren();
  }

  /** Focus the tile of a place, which may have to be loaded. */
  async focus(place, { scroll = true } = {}) {
    const part = this.#chunkOf(place);
    if (!part) return;
    const list = this.list;
    if (!part.boxes) {
      part.element.scrollIntoView({ block: "center" });
      await this.#load(part);
      if (this.list !== list) return;
    }
    if (!this.tiles.has(place)) {
      part.kept = true;
      this.#fill(part);
    }
    const link = this.tiles.get(place)?.querySelector("a");
    link?.focus({ preventScroll: true });
    if (link && scroll) link.closest("li").scrollIntoView({ block: "nearest" });
  }

  /** Where the rows of a month begin, in pixels from the top of the page; null if the list has no such month. */
  topOf(month) {
    const part = this.chunks.find((candidate) => candidate.month === month);
    return part ? part.element.parentElement.getBoundingClientRect().top + scrollY : null;
  }

  /** The months with the place where each begins, in pixels from the top of the mosaic. */
  get months() {
    return this.chunks
      .filter((part) => part.isFirst && part.month !== null)
      .map((part) => ({ month: part.month, top: part.element.parentElement.offsetTop - this.host.offsetTop }));
  }

  /** Draw which pictures are selected. */
  drawSelection() {
    this.host.classList.toggle("selecting", this.selection.active);
    for (const [place, item] of this.tiles) this.#mark(item, this.list.at(place));
  }

  /* ---- what is in the page ---- */

  #forget() {
    this.observer.disconnect();
    this.chunks = [];
    this.tiles.clear();
    this.byElement.clear();
    this.current = 0;
  }

  #size(part, height) {
    const change = height - (part.height ?? height);
    // what is above the screen must not move what is on it; browsers' own anchors do not know of the bar
    const isAbove = change !== 0 && scrollY > 0 && part.element.getBoundingClientRect().bottom <= BAR;
    part.height = height;
    part.element.style.blockSize = `${height}px`;
    if (isAbove) scrollBy(0, change);
  }

  #near({ target, isIntersecting }) {
    const part = this.byElement.get(target);
    if (!part) return;
    part.near = isIntersecting;
    clearTimeout(part.timer);
    if (!isIntersecting) this.#empty(part);
    else if (this.list.at(part.start)) this.#fill(part);
    else part.timer = setTimeout(() => this.#load(part).catch(() => {}), PASSING);
  }

  async #load(part) {
    const list = this.list;
    try {
      await list.load(part.start);
    } catch (error) {
      if (this.list === list) this.failed(error);
      throw error;
    }
    if (this.list === list && list.at(part.start)) this.#fill(part);
  }

  #lay(part) {
    part.shown = [];
    const places = part.shown;
    for (let place = part.start; place < part.start + part.count; place += 1) {
      if (this.list.at(place) && !this.list.isHidden(place)) places.push(place);
    }
    const proportions = places.map((place) => proportion(this.list.at(place).layout ?? undefined));
    const full = part.month !== null && !part.isLast;
    const { boxes, height } = justify(proportions, { ...this.geometry, full });
    part.boxes = boxes;
    this.#size(part, height);
  }

  #fill(part) {
    if (!part.boxes) this.#lay(part);
    const items = part.shown.map((place, at) => {
      const picture = this.list.at(place);
      const item = this.tiles.get(place) ?? this.before?.get(picture.id) ?? tile();
      this.before?.delete(picture.id);
      this.#draw(item, place, picture, part.boxes[at]);
      this.tiles.set(place, item);
      return item;
    });
    const present = [...part.element.children];
    // a tile that is removed and inserted again would load again
    if (present.length === items.length && present.every((item, at) => item === items[at])) return;
    part.element.replaceChildren(...items);
  }

  #empty(part) {
    if (part.element.contains(document.activeElement)) return;
    for (const place of part.shown) this.tiles.delete(place);
    part.element.replaceChildren();
  }

  #resize() {
    const width = this.host.clientWidth;
    if (!this.list || width === this.width) return;
    this.width = width;
    const geometry = this.geometry;
    const anchor = [...this.tiles].find(([, item]) => item.getBoundingClientRect().bottom > BAR)?.[1];
    const before = anchor?.getBoundingClientRect().top;
    for (const part of this.chunks) {
      part.boxes = null;
      delete part.height;
      if (part.element.children.length) this.#fill(part);
      else if (this.list.at(part.start)) this.#lay(part);
      else this.#size(part, estimate(part.count, geometry));
    }
    if (anchor?.isConnected && scrollY > 0) scrollBy(0, anchor.getBoundingClientRect().top - before);
  }

  #draw(item, place, picture, box) {
    item.dataset.place = place;
    const { style } = item;
    [style.left, style.top, style.width, style.height] = [box.x, box.y, box.width, box.height].map((n) => `${n}px`);
    const link = item.firstChild;
    const [image, words] = link.children;
    const needed = Math.max(box.width, box.height) * Math.min(2, devicePixelRatio);
    const address = thumbnail(picture, SIDES.find((side) => side >= needed) ?? SIDES.at(-1));
    const title = caption(picture);
    const confidence = typeof picture.confidence === "number" ? percent(picture.confidence) : null;
    const href = original(picture);
    if (href) link.setAttribute("href", href);
    else link.removeAttribute("href");
    link.tabIndex = place === this.current ? 0 : -1;
    image.alt = title;
    words.replaceChildren(element("span", null, title), ...(confidence ? [element("b", null, confidence)] : []));
    const stack = this.list.stackOf(place).length;
    item.querySelector(".stack")?.remove();
    if (stack) {
      link.append(
        element("span", { class: "stack" }, icon("stack"), count(stack), element("span", { class: "unseen" }, " alike")),
      );
    }
    this.#mark(item, picture);
    if (!address) item.classList.add("broken");
    else if (image.src !== address) {
      item.classList.remove("broken");
      image.src = address;
    }
  }

  #mark(item, picture) {
    const isSelected = picture !== undefined && this.selection.has(picture.id);
    item.classList.toggle("selected", isSelected);
    const check = item.querySelector(".check");
    check.setAttribute("aria-checked", String(isSelected));
    check.setAttribute("aria-label", `Select ${picture ? caption(picture) : ""}`);
  }

  /* ---- where things are ---- */

  #chunkOf(place) {
    return this.chunks.find((part) => place >= part.start && place < part.start + part.count);
  }

  #placeOf(target) {
    const item = target instanceof Element ? target.closest("li[data-place]") : null;
    return item ? Number(item.dataset.place) : -1;
  }

  #rove(place) {
    if (place < 0) return;
    const old = this.tiles.get(this.current)?.querySelector("a");
    if (old) old.tabIndex = -1;
    this.current = place;
    const link = this.tiles.get(place)?.querySelector("a");
    if (link) link.tabIndex = 0;
  }

  /** The place of the tile above or below, whose middle is nearest; null if there is none. */
  async #vertical(place, direction) {
    const part = this.#chunkOf(place);
    const at = part.shown.indexOf(place);
    const here = part.boxes[at];
    const middle = here.x + here.width / 2;
    const next = nearest(part, middle, (box) => (direction > 0 ? box.y > here.y : box.y < here.y), direction);
    if (next !== null) return next;
    const neighbour = this.chunks[this.chunks.indexOf(part) + direction];
    if (!neighbour) return null;
    if (!neighbour.boxes) {
      if (!this.list.at(neighbour.start)) await this.list.load(neighbour.start);
      this.#lay(neighbour);
    }
    return nearest(neighbour, middle, () => true, direction);
  }

  /* ---- what a person does ---- */

  #click(event) {
    const place = this.#placeOf(event.target);
    if (place < 0 || event.button) return;
    const picture = this.list.at(place);
    if (event.target.closest(".check") || (this.selection.active && !event.ctrlKey && !event.metaKey)) {
      event.preventDefault();
      this.#rove(place);
      this.#select(place, event.shiftKey);
      return;
    }
    // with a modifier key the browser opens the file in a tab, as for any link
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || !picture) return;
    event.preventDefault();
    this.#rove(place);
    this.open(place);
  }

  /** Select a picture, or no longer, with all of its stack; `range` begins at the last one that was selected. */
  #select(place, range) {
    const from = range && this.lastSelected !== undefined ? this.lastSelected : place;
    const wanted = !this.selection.has(this.list.at(place).id);
    for (let at = Math.min(from, place); at <= Math.max(from, place); at += 1) {
      const alike = this.list.stackOf(at);
      for (const other of alike.length ? alike : [at]) {
        const picture = this.list.at(other);
        if (picture) this.selection.set(picture, range || wanted);
      }
    }
    this.lastSelected = place;
    this.selection.changed();
  }

  /** A finger that stays on a tile selects it. */
  #longPress() {
    let timer = 0;
    this.host.addEventListener(
      "touchstart",
      (event) => {
        const place = this.#placeOf(event.target);
        if (place < 0 || event.touches.length > 1) return;
        timer = setTimeout(() => {
          this.#select(place, false);
          navigator.vibrate?.(10);
          this.host.addEventListener("click", (click) => { click.preventDefault(); click.stopPropagation(); }, { capture: true, once: true });
        }, LONG_PRESS);
      },
      { passive: true },
    );
    for (const end of ["touchend", "touchmove", "touchcancel"]) {
      this.host.addEventListener(end, () => clearTimeout(timer), { passive: true });
    }
    this.host.addEventListener("contextmenu", (event) => {
      if (matchMedia("(pointer: coarse)").matches && this.#placeOf(event.target) >= 0) event.preventDefault();
    });
  }

  async #key(event) {
    const here = this.#placeOf(event.target);
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "x" || (event.key === " " && this.selection.active)) {
      event.preventDefault();
      this.#select(here, false);
      return;
    }
    const target = {
      ArrowLeft: () => this.list.step(here, -1),
      ArrowRight: () => this.list.step(here, 1),
      ArrowUp: () => this.#vertical(here, -1),
      ArrowDown: () => this.#vertical(here, 1),
      Home: () => 0,
      End: () => this.list.length - 1,
    }[event.key];
    if (!target) return;
    event.preventDefault();
    let place = await target();
    if (place === null) return;
    if (event.key === "End") {
      await this.list.load(place);
      while (place > 0 && this.list.isHidden(place)) place -= 1;
    }
    this.focus(place);
  }
}

/** The place of the box in the nearest row of a chunk, among those that qualify, whose middle is nearest to `x`. */
function nearest(part, x, qualifies, direction) {
  const candidates = part.boxes.map((box, at) => ({ box, place: part.shown[at] })).filter(({ box }) => qualifies(box));
  if (!candidates.length) return null;
  const rows = candidates.map(({ box }) => box.y);
  const row = direction > 0 ? Math.min(...rows) : Math.max(...rows);
  const inRow = candidates.filter(({ box }) => box.y === row);
  const off = ({ box }) => Math.abs(box.x + box.width / 2 - x);
  return inRow.reduce((best, one) => (off(one) < off(best) ? one : best)).place;
}

function tile() {
  const image = element("img", { loading: "lazy", decoding: "async" });
  const words = element("span", { class: "words", "aria-hidden": "true" });
  const check = element("button", { type: "button", class: "check", role: "checkbox", tabindex: -1 }, icon("check"));
  const item = element("li", null, element("a", { class: "tile" }, image, words), check);
  image.addEventListener("load", () => item.classList.add("loaded"));
  image.addEventListener("error", () => item.classList.add("broken"));
  return item;
}
