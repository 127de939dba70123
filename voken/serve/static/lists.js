/* Lists of pictures, for the mosaic and the viewer: the hits of a search, and the collection, of which parts are loaded.

   Both have `length`, `chunks` ({start, count, month}), `at(place)` (undefined before its chunk is loaded) and
   `load(place)`. A picture that repeats an earlier one of its chunk is behind it, in its stack. */

import * as server from "./server.js";

export const CHUNK = 60;

class List {
  constructor(length, chunks) {
    this.length = length;
    this.chunks = chunks;
    this.stacks = new Map(); // place → places of the stack that begins there
    this.heads = new Map(); // place → place where its stack begins
  }

  /** Remember which of the pictures from `start` repeat an earlier one. */
  stack(start, pictures) {
    const places = new Map(pictures.map((picture, at) => [picture.id, start + at]));
    pictures.forEach((picture, at) => {
      const head = places.get(picture.layout?.stack);
      if (head === undefined || head === start + at) return;
      this.heads.set(start + at, head);
      this.stacks.set(head, [...(this.stacks.get(head) ?? [head]), start + at]);
    });
  }

  /** Whether the picture is behind another one. */
  isHidden(place) {
    return this.heads.has(place);
  }

  /** The places of all pictures in the stack of this one; empty if it is alone. */
  stackOf(place) {
    return this.stacks.get(this.heads.get(place) ?? place) ?? [];
  }

  /** The next place in a direction that is not behind another picture; null at the end. */
  step(place, direction) {
    let next = place + direction;
    while (next >= 0 && next < this.length && this.isHidden(next)) next += direction;
    return next >= 0 && next < this.length ? next : null;
  }
}

/** The hits of a search, all there. */
export class HitList extends List {
  constructor(hits) {
    super(hits.length, hits.length ? [{ start: 0, count: hits.length, month: null }] : []);
    this.hits = hits;
    this.stack(0, hits);
  }

  at(place) {
    return this.hits[place];
  }

  async load() {}

  placeOf(id) {
    return this.hits.findIndex((hit) => hit.id === id);
  }
}

/** The pictures that pass some filters, newest first. They are loaded a chunk at a time. */
export class CollectionList extends List {
  /** `changed()` is called when the server has another version of the collection. */
  constructor({ months, total, version }, filters, changed) {
    super(total, [...chunksOf(months)]);
    this.months = months;
    this.version = version;
    this.filters = filters;
    this.changed = changed;
    this.pictures = new Map(); // place → picture
    this.places = new Map(); // id → place
    this.loading = new Map(); // start → promise
  }

  at(place) {
    return this.pictures.get(place);
  }

  placeOf(id) {
    return this.places.get(id) ?? -1;
  }

  chunkOf(place) {
    let [low, high] = [0, this.chunks.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.chunks[middle].start <= place) low = middle;
      else high = middle - 1;
    }
    return this.chunks[low];
  }

  /** Load the chunk of a place. A failed request may be made again. */
  load(place) {
    const { start, count } = this.chunkOf(place);
    if (this.pictures.has(start)) return Promise.resolve();
    if (!this.loading.has(start)) {
      const request = this.#fetch(start, count).finally(() => this.loading.delete(start));
      this.loading.set(start, request);
    }
    return this.loading.get(start);
  }

  async #fetch(start, count) {
    const { pictures, version } = await server.list({ filters: this.filters, offset: start, limit: count });
    if (version !== this.version) return this.changed();
    pictures.forEach((picture, at) => {
      this.pictures.set(start + at, picture);
      this.places.set(picture.id, start + at);
    });
    return this.stack(start, pictures);
  }
}

/** One picture that is in no list that is on the screen. */
export class SingleList extends HitList {
  constructor(picture) {
    super([picture]);
  }
}

function* chunksOf(months) {
  let start = 0;
  for (const { month, pictures } of months) {
    // chunks of one month are about equally long
    const parts = Math.ceil(pictures / CHUNK);
    for (let part = 0; part < parts; part += 1) {
      const end = Math.round(((part + 1) * pictures) / parts);
      const count = end - Math.round((part * pictures) / parts);
      yield { start, count, month, isFirst: part === 0, isLast: part === parts - 1, ofMonth: pictures };
      start += count;
    }
  }
}
