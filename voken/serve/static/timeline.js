/* The months along the right edge: where in the collection the screen is, and a way to any other year. */

import { byId, element } from "./element.js";
import { month as monthName } from "./words.js";

const LEAST_GAP = 22; // px between two years
const FEWEST = 2; // months with which a timeline is shown

export class Timeline {
  constructor(mosaic) {
    this.mosaic = mosaic;
    this.bar = byId("timeline");
    this.months = [];
    byId("jump").addEventListener("change", (event) => this.#jump(event.target.value));
    const track = byId("timeline-track");
    track.addEventListener("pointerdown", (event) => {
      if (event.button || event.target.closest("button")) return; // a year is a button of its own
      track.setPointerCapture(event.pointerId);
      this.#drag(event);
    });
    track.addEventListener("pointermove", (event) => {
      if (track.hasPointerCapture(event.pointerId)) this.#drag(event);
      else this.#say(this.#at(event));
    });
    track.addEventListener("pointerleave", () => this.#mark());
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.#draw()).observe(mosaic.host);
  }

  /** Show the months of a list; none for the hits of a search. */
  show(months) {
    this.months = months;
    const hidden = months.length < FEWEST;
    this.bar.hidden = hidden;
    document.body.classList.toggle("with-timeline", !hidden);
    byId("jump-label").hidden = hidden;
    byId("jump").replaceChildren(...months.map(({ month }) => element("option", { value: month }, monthName(month))));
    this.#draw();
  }

  #draw() {
    if (this.bar.hidden) return;
    const tops = this.mosaic.months;
    const height = this.mosaic.host.offsetHeight || 1;
    const space = byId("timeline-track").clientHeight;
    let lastYear = null;
    let lastAt = -Infinity;
    const years = [];
    for (const { month, top } of tops) {
      const year = month.slice(0, 4);
      const at = (top / height) * space;
      if (year === lastYear || at - lastAt < LEAST_GAP) continue;
      [lastYear, lastAt] = [year, at];
      const button = element("button", { type: "button", class: "year" }, year);
      button.style.insetBlockStart = `${at}px`;
      button.addEventListener("click", () => this.#jump(month));
      years.push(element("li", null, button));
    }
    byId("years").replaceChildren(...years);
    this.#mark();
  }

  #jump(month) {
    const top = this.mosaic.topOf(month);
    if (top !== null) scrollTo({ top: top - this.#covered() });
  }

  /** The height of what stays at the top of the screen. */
  #covered() {
    const bar = document.querySelector(matchMedia("(max-width: 719px)").matches ? ".searching" : ".bar");
    return bar?.offsetHeight ?? 0;
  }

  #at(event) {
    const box = byId("timeline-track").getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientY - box.top) / box.height));
  }

  #drag(event) {
    event.preventDefault();
    const share = this.#at(event);
    const top = this.mosaic.host.offsetTop + share * this.mosaic.host.offsetHeight;
    scrollTo({ top: top - this.#covered() });
    this.#say(share);
  }

  /** Name the month at a share of the height, beside the track. */
  #say(share) {
    const top = share * this.mosaic.host.offsetHeight;
    const month = this.mosaic.months.findLast((one) => one.top <= top + 1)?.month;
    const label = byId("timeline-label");
    label.textContent = month ? monthName(month) : "";
    label.style.insetBlockStart = `${share * byId("timeline-track").clientHeight}px`;
  }

  #scrolled() {
    if (this.bar.hidden || this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.#mark();
    });
  }

  /** Mark where the screen is. */
  #mark() {
    const { offsetTop, offsetHeight } = this.mosaic.host;
    const share = Math.min(1, Math.max(0, (scrollY + this.#covered() - offsetTop) / (offsetHeight || 1)));
    byId("timeline-mark").style.insetBlockStart = `${share * byId("timeline-track").clientHeight}px`;
    this.#say(share);
    const top = share * offsetHeight;
    const month = this.mosaic.months.findLast((one) => one.top <= top + 1)?.month;
    if (month && document.activeElement !== byId("jump")) byId("jump").value = month;
  }
}
