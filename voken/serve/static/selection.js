/* The selected pictures, and the bar that exports them. */

import { byId } from "./element.js";
import * as server from "./server.js";
import { count } from "./words.js";

export class Selection {
  /** `drawn()` is called when the mosaic must be drawn again. */
  constructor(drawn) {
    this.pictures = new Map(); // id → picture
    this.mode = false; // whether a tap selects, although nothing is selected yet
    this.drawn = drawn;
    byId("select").addEventListener("click", () => {
      if (this.active) this.clear();
      else this.mode = true;
      this.changed();
    });
    byId("selection-clear").addEventListener("click", () => {
      this.clear();
      this.changed();
    });
    byId("selection-zip").addEventListener("click", () => this.#export("zip", "pictures.zip"));
    byId("selection-list").addEventListener("click", () => this.#export("list", "pictures.txt"));
  }

  /** Whether a click on a picture selects it. */
  get active() {
    return this.mode || this.pictures.size > 0;
  }

  has(id) {
    return this.pictures.has(id);
  }

  set(picture, isSelected) {
    if (isSelected) this.pictures.set(picture.id, picture);
    else this.pictures.delete(picture.id);
  }

  clear() {
    this.pictures.clear();
    this.mode = false;
  }

  /** Draw the bar and the tiles. */
  changed() {
    byId("selection").hidden = !this.active;
    byId("selection-count").textContent = `${count(this.pictures.size)} selected`;
    byId("selection-error").hidden = true;
    for (const id of ["selection-zip", "selection-list"]) byId(id).disabled = !this.pictures.size;
    byId("select").setAttribute("aria-pressed", String(this.active));
    document.body.classList.toggle("with-selection", this.active);
    this.drawn();
  }

  async #export(format, name) {
    const error = byId("selection-error");
    error.hidden = true;
    byId("selection").classList.add("busy");
    try {
      const content = await server.exported([...this.pictures.keys()], format);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(content);
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (problem) {
      error.textContent = problem.message;
      error.hidden = false;
    } finally {
      byId("selection").classList.remove("busy");
    }
  }
}
