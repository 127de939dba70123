/* One picture, large, with its facts. It knows a list of hits and a place in it, but not the search. */

import { byId, element } from "./element.js";
import { original, thumbnail } from "./server.js";
import { explanation, voken } from "./why.js";
import { caption, count, decimals, percent, value } from "./words.js";

const LARGE = 1024;
const SWIPE = 48; // pixels

export class Viewer {
  /** `moved(hit)` and `closed(place)` are called after a move and a close, `similar(hit)` to search by a hit. */
  constructor({ moved, closed, similar }) {
    this.dialog = byId("viewer");
    this.hits = [];
    this.place = -1;
    this.context = null;
    this.moved = moved;
    byId("previous").addEventListener("click", () => this.go(-1));
    byId("next").addEventListener("click", () => this.go(1));
    byId("viewer-close").addEventListener("click", () => this.close());
    byId("similar").addEventListener("click", () => similar(this.hits[this.place]));
    byId("why").addEventListener("toggle", () => this.#why());
    byId("why").open = matchMedia("(min-width: 900px)").matches;
    this.dialog.addEventListener("close", () => closed(this.place));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.close(); // the backdrop
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        event.preventDefault();
        this.go(step);
      }
    });
    this.#swipe(byId("stage"));
  }

  get isOpen() {
    return this.dialog.open;
  }

  /**
   * `context` holds the query's text, the number of pictures in the collection, and `explain(hit)`, a promise of the
   * hit's `why`, or of null if there is none.
   */
  open(hits, place, context) {
    this.hits = hits;
    this.context = context;
    this.#show(place);
    if (!this.dialog.open) this.dialog.showModal();
    byId("viewer-title").focus({ preventScroll: true });
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  go(step) {
    const place = this.place + step;
    if (place < 0 || place >= this.hits.length) return;
    this.#show(place);
    this.moved(this.hits[place]);
  }

  #show(place) {
    const hit = this.hits[place];
    this.place = place;
    byId("viewer-title").textContent = caption(hit);
    byId("place").textContent = `${count(place + 1)} of ${count(this.hits.length)}`;
    byId("previous").disabled = place === 0;
    byId("next").disabled = place === this.hits.length - 1;
    const file = original(hit);
    byId("original").toggleAttribute("hidden", !file);
    if (file) byId("original").href = file;
    this.#picture(hit);
    byId("hit-facts").replaceChildren(...facts(hit));
    const metadata = Object.entries(hit.metadata ?? {});
    byId("metadata-section").hidden = !metadata.length;
    byId("metadata").replaceChildren(...metadata.flatMap(([name, data]) => pair(name, value(data))));
    this.dialog.querySelector(".facts").scrollTop = 0;
    this.dialog.scrollTop = 0;
    this.#why();
  }

  /** Show the thumbnail, which is in the cache, until the large picture is loaded. */
  #picture(hit) {
    const [small, large] = [thumbnail(hit, 256), thumbnail(hit, LARGE)];
    const image = byId("large");
    image.alt = caption(hit);
    byId("stage").classList.remove("broken");
    if (!large) {
      byId("stage").classList.add("broken");
      return;
    }
    image.src = small;
    const loading = new Image();
    loading.addEventListener("load", () => {
      if (this.hits[this.place] !== hit) return;
      // a small picture is enlarged up to three times, so that an icon is visible on a large screen
      image.style.inlineSize = `${Math.max(loading.naturalWidth, Math.min(3 * loading.naturalWidth, 420))}px`;
      image.src = large;
      const after = this.hits[this.place + 1];
      if (after) new Image().src = thumbnail(after, LARGE) ?? "";
    });
    loading.addEventListener("error", () => {
      if (this.hits[this.place] === hit) byId("stage").classList.add("broken");
    });
    loading.src = large;
  }

  async #why() {
    const content = byId("why-content");
    const hit = this.hits[this.place];
    if (!byId("why").open || !hit) return;
    const slow = setTimeout(() => content.replaceChildren(element("p", { class: "soft" }, "Loading…")), 250);
    let parts;
    try {
      const why = await this.context.explain(hit);
      parts = why
        ? explanation(hit, why, { ...this.context, place: this.place })
        : [element("p", null, "This search compared pictures with each other; the model wrote no vokens for it.")];
    } catch (error) {
      parts = [element("p", { class: "error" }, error.message)];
    } finally {
      clearTimeout(slow);
    }
    if (this.hits[this.place] === hit) content.replaceChildren(...parts);
  }

  #swipe(stage) {
    let from = null;
    stage.addEventListener("touchstart", (event) => {
      from = event.touches.length === 1 ? event.touches[0] : null;
    }, { passive: true });
    stage.addEventListener("touchend", (event) => {
      if (!from) return;
      const [x, y] = [event.changedTouches[0].clientX - from.clientX, event.changedTouches[0].clientY - from.clientY];
      if (Math.abs(x) > SWIPE && Math.abs(x) > 2 * Math.abs(y)) this.go(x < 0 ? 1 : -1);
      from = null;
    });
  }
}

function facts(hit) {
  const vokens = element("span", { class: "vokens" }, ...hit.vokens.map(voken));
  return [
    ...pair("Id", hit.id, "hit-id"),
    ...pair("Score", element("data", { value: hit.score, id: "hit-score" }, decimals(hit.score, 3))),
    ...(typeof hit.confidence === "number"
      ? pair("Confidence", element("data", { value: hit.confidence, id: "hit-confidence" }, percent(hit.confidence)))
      : []),
    ...(hit.vokens.length ? pair("Vokens", vokens) : []),
  ];
}

const pair = (name, content, id) => [element("dt", null, name), element("dd", { id }, content)];
