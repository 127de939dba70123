/* One picture, large, with its facts. It knows a list of pictures and a place in it, but not the search. */

import { byId, element } from "./element.js";
import { details, original, thumbnail } from "./server.js";
import { explanation, voken } from "./why.js";
import { bytes, caption, count, decimals, moment, percent, quoted, value } from "./words.js";
import { Zoom } from "./zoom.js";

const LARGE = 1024;
const SWIPE = 48; // pixels
/* What browsers show. Other files are shown as a large thumbnail, also if they are enlarged. */
const SHOWN = /\.(jpe?g|jfif|png|apng|webp|gif|avif|bmp|svg)$/i;

export class Viewer {
  /**
   * `moved(picture, place)` and `closed(place)` are called after a move and a close, `similar(picture)` to search by a
   * picture, `folder(filter)` to show a folder, `failed(error)` if a picture cannot be loaded.
   */
  constructor({ moved, closed, similar, folder, failed }) {
    this.dialog = byId("viewer");
    this.list = null;
    this.place = -1;
    this.context = null;
    this.moved = moved;
    this.folder = folder;
    this.failed = failed;
    this.zoom = new Zoom(byId("stage"), byId("large"), (isEnlarged) => isEnlarged && this.#original());
    byId("previous").addEventListener("click", () => this.go(-1));
    byId("next").addEventListener("click", () => this.go(1));
    byId("viewer-close").addEventListener("click", () => this.close());
    byId("similar").addEventListener("click", () => similar(this.picture));
    byId("why").addEventListener("toggle", () => this.#why());
    byId("why").open = matchMedia("(min-width: 900px)").matches;
    this.dialog.addEventListener("close", () => closed(this.place));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.close(); // the backdrop
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const act = {
        ArrowLeft: () => this.go(-1),
        ArrowRight: () => this.go(1),
        "+": () => this.zoom.by(1.6),
        "=": () => this.zoom.by(1.6),
        "-": () => this.zoom.by(1 / 1.6),
        0: () => this.zoom.reset(),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    this.#swipe(byId("stage"));
  }

  get isOpen() {
    return this.dialog.open;
  }

  get picture() {
    return this.list?.at(this.place);
  }

  /**
   * `context` holds the query's text, the number of pictures in the collection, and `explain(hit)`, a promise of the
   * hit's `why`, or of null if there is none; `explain` is null if nothing was searched.
   */
  open(list, place, context) {
    this.list = list;
    this.context = context;
    this.#show(place);
    if (!this.dialog.open) this.dialog.showModal();
    byId("viewer-title").focus({ preventScroll: true });
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  async go(step) {
    const place = this.list.step(this.place, step);
    if (place === null) return;
    await this.#goTo(place);
  }

  async #goTo(place) {
    const { list } = this;
    this.wanted = place;
    if (!list.at(place)) {
      try {
        await list.load(place);
      } catch (error) {
        this.failed(error);
        return;
      }
    }
    // the chunk may show that the picture is behind another one
    if (this.list !== list || this.wanted !== place || !list.at(place) || !this.isOpen) return;
    this.#show(place);
    this.moved(list.at(place), place);
  }

  #show(place) {
    const { list } = this;
    const hit = list.at(place);
    this.place = place;
    this.zoom.reset();
    byId("viewer-title").textContent = caption(hit);
    byId("place").textContent = list.length > 1 ? `${count(place + 1)} of ${count(list.length)}` : "";
    byId("previous").disabled = list.step(place, -1) === null;
    byId("next").disabled = list.step(place, 1) === null;
    const file = original(hit);
    for (const id of ["original", "download"]) {
      byId(id).toggleAttribute("hidden", !file);
      if (file) byId(id).href = file;
    }
    byId("download").download = hit.id.split("/").at(-1);
    this.#picture(hit);
    this.#stack();
    byId("hit-facts").replaceChildren(...facts(hit));
    byId("file-facts").replaceChildren();
    this.#details(hit);
    const metadata = Object.entries(hit.metadata ?? {});
    byId("metadata-section").hidden = !metadata.length;
    byId("metadata").replaceChildren(...metadata.flatMap(([name, data]) => pair(name, value(data))));
    byId("why").hidden = !this.context.explain;
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
    const { width, height } = hit.layout ?? {};
    const widthOf = (pixels) => Math.max(pixels, Math.min(3 * pixels, 420));
    const scale = width && height ? Math.min(1, LARGE / Math.max(width, height)) : null;
    if (scale) image.style.inlineSize = `${widthOf(width * scale)}px`;
    const loading = new Image();
    loading.addEventListener("load", () => {
      if (this.picture !== hit) return;
      // a small picture is enlarged up to three times, so that an icon is visible on a large screen
      image.style.inlineSize = `${widthOf(loading.naturalWidth)}px`;
      if (this.zoom.scale === 1) image.src = large;
      const after = this.list.at(this.list.step(this.place, 1) ?? -1);
      if (after) new Image().src = thumbnail(after, LARGE) ?? "";
    });
    loading.addEventListener("error", () => {
      if (this.picture === hit) byId("stage").classList.add("broken");
    });
    loading.src = large;
  }

  /** Replace the large thumbnail by the file itself: the picture is enlarged. */
  #original() {
    const hit = this.picture;
    const file = hit && original(hit);
    const image = byId("large");
    if (!file || !SHOWN.test(hit.id) || image.src === file) return;
    const loading = new Image();
    loading.addEventListener("load", () => {
      if (this.picture === hit && this.zoom.scale > 1) image.src = file;
    });
    loading.src = file;
  }

  /** The pictures that look the same. */
  #stack() {
    const places = this.list.stackOf(this.place);
    byId("alike").hidden = !places.length;
    byId("alike-list").replaceChildren(
      ...places.map((place) => {
        const picture = this.list.at(place);
        const image = element("img", { src: thumbnail(picture, 256), alt: caption(picture), width: 64, height: 64 });
        const button = element("button", { type: "button", "aria-current": place === this.place && "true" }, image);
        button.addEventListener("click", () => this.#goTo(place));
        return element("li", null, button);
      }),
    );
  }

  /** What the server knows of the file. */
  async #details(hit) {
    this.asking?.abort();
    this.asking = new AbortController();
    let known;
    try {
      known = await details(hit, this.asking.signal);
    } catch {
      return; // the picture itself shows what is wrong
    }
    if (this.picture !== hit) return;
    const size = known.width ? `${count(known.width)} × ${count(known.height)}` : "";
    const file = [size, known.bytes === null ? "" : bytes(known.bytes), known.format].filter(Boolean).join(" · ");
    const folder = element("button", { type: "button", class: "link" }, known.folder || "(top)");
    folder.addEventListener("click", () => this.folder(`folder=${quoted(known.folder)}`));
    byId("file-facts").replaceChildren(
      ...pair(known.is_dated ? "Taken" : "File of", moment(known.date), "hit-date"),
      ...(file ? pair("Size", file, "hit-size") : []),
      ...(known.camera ? pair("Camera", known.camera, "hit-camera") : []),
      ...(known.lens ? pair("Lens", known.lens) : []),
      ...(known.exposure ? pair("Exposure", known.exposure) : []),
      ...pair("Folder", known.folder ? folder : "the top", "hit-folder"),
      ...pair("Path", copied(known.path), "hit-path"),
    );
  }

  async #why() {
    const content = byId("why-content");
    const hit = this.picture;
    if (!byId("why").open || !hit || !this.context.explain) return;
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
    if (this.picture === hit) content.replaceChildren(...parts);
  }

  #swipe(stage) {
    let from = null;
    stage.addEventListener("touchstart", (event) => {
      from = event.touches.length === 1 && this.zoom.scale === 1 ? event.touches[0] : null;
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
  const vokens = element("span", { class: "vokens" }, ...(hit.vokens ?? []).map(voken));
  return [
    ...pair("Id", hit.id, "hit-id"),
    ...(typeof hit.score === "number"
      ? pair("Score", element("data", { value: hit.score, id: "hit-score" }, decimals(hit.score, 3)))
      : []),
    ...(typeof hit.confidence === "number"
      ? pair("Confidence", element("data", { value: hit.confidence, id: "hit-confidence" }, percent(hit.confidence)))
      : []),
    ...(hit.vokens?.length ? pair("Vokens", vokens) : []),
  ];
}

const pair = (name, content, id) => [element("dt", null, name), element("dd", { id }, content)];

/** A text with a button that copies it. */
function copied(text) {
  const button = element("button", { type: "button", class: "link", id: "copy-path" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // not allowed, or not over HTTPS: select it, so that one key copies it
      getSelection().selectAllChildren(button.previousSibling);
      button.textContent = "Selected";
    }
  });
  return element("span", { class: "copied" }, element("span", null, text), button);
}
