/* Enlarges the picture in the viewer, and moves it. Pinching is left to the browser. */

import { byId } from "./element.js";

const STEP = 1.6;
const MOST = 8;

export class Zoom {
  /** `enlarged(isEnlarged)` is called when the picture becomes larger than the stage, or fits again. */
  constructor(stage, image, enlarged) {
    this.stage = stage;
    this.image = image;
    this.enlarged = enlarged;
    this.reset();
    byId("zoom-in").addEventListener("click", () => this.by(STEP));
    byId("zoom-out").addEventListener("click", () => this.by(1 / STEP));
    stage.addEventListener("dblclick", (event) => (this.scale > 1 ? this.reset() : this.by(2.5, event)));
    stage.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && this.scale === 1) return;
        event.preventDefault();
        this.by(event.deltaY < 0 ? 1.2 : 1 / 1.2, event);
      },
      { passive: false },
    );
    stage.addEventListener("pointerdown", (event) => {
      if (this.scale === 1 || event.button || event.pointerType === "touch") return;
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      this.from = { x: event.clientX - this.x, y: event.clientY - this.y };
    });
    stage.addEventListener("pointermove", (event) => {
      if (this.from) this.#move(event.clientX - this.from.x, event.clientY - this.from.y);
    });
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (this.from = null));
  }

  /** Show the whole picture. */
  reset() {
    [this.scale, this.x, this.y, this.from] = [1, 0, 0, null];
    this.#draw();
  }

  /** Enlarge by a factor; the point of `event`, or the middle, stays in its place. */
  by(factor, event = null) {
    const box = this.stage.getBoundingClientRect();
    const x = event ? event.clientX - box.left - box.width / 2 : 0;
    const y = event ? event.clientY - box.top - box.height / 2 : 0;
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    const real = scale / this.scale;
    this.scale = scale < 1.01 ? 1 : scale;
    this.#move(x - (x - this.x) * real, y - (y - this.y) * real);
  }

  /** Move the picture, as long as some of it stays in the middle. */
  #move(x, y) {
    const most = (size) => (size * (this.scale - 1)) / 2;
    const [wide, high] = [most(this.image.clientWidth), most(this.image.clientHeight)];
    this.x = Math.min(wide, Math.max(-wide, x));
    this.y = Math.min(high, Math.max(-high, y));
    this.#draw();
  }

  #draw() {
    const { style } = this.image;
    style.transform = this.scale === 1 ? "" : `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.stage.classList.toggle("zoomed", this.scale > 1);
    byId("zoom-out").disabled = this.scale === 1;
    byId("zoom-in").disabled = this.scale === MOST;
    this.enlarged(this.scale > 1);
  }
}
