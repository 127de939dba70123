/* The filters in force, and the forms that make them. A filter is a string as the server reads it ("date>=2024-05"). */

import { byId, element, icon } from "./element.js";
import * as words from "./words.js";

const FORMS = ["date", "folder", "any"];

export class Filters {
  /** `changed()` is called when somebody changed `list` or `sure`. */
  constructor(changed) {
    this.list = [];
    this.sure = null; // the least probability that a hit is right, or null
    this.changed = changed;
    this.from = new Map(); // filter → the form it was made in
    byId("filters-open").addEventListener("click", () => this.toggle());
    for (const end of ["from", "to"]) byId(`date-${end}`).addEventListener("change", () => this.#date(end));
    this.#form("folder", () => {
      const folder = byId("folder").value.trim();
      if (folder) this.#add(`folder=${folder}`, "folder");
    });
    this.#form("any", () => {
      const [field, operator, value] = ["field", "operator", "value"].map((id) => byId(id).value.trim());
      if (field && value) this.#add(`${field}${operator}${value}`, "any");
      else byId(field ? "value" : "field").focus();
    });
    this.#form("date", () => {});
    this.#form("sure", () => {});
    byId("sure").addEventListener("input", () => this.#saySure());
    byId("sure").addEventListener("change", () => {
      this.sure = Number(byId("sure").value) / 100 || null;
      this.#draw();
      this.changed();
    });
  }

  /** What the server can filter by. */
  offer({ fields, calibrated }) {
    byId("filter-date").hidden = !fields.includes("date");
    byId("filter-folder").hidden = !fields.includes("folder");
    byId("filter-sure").hidden = !calibrated;
    byId("fields").replaceChildren(...fields.map((field) => element("option", { value: field })));
  }

  set(list, sure) {
    this.list = [...list];
    this.sure = sure;
    byId("sure").value = String(Math.round(100 * (sure ?? 0)));
    this.#saySure();
    for (const [end, sign] of [["from", ">="], ["to", "<="]]) {
      const day = this.list.find((filter) => filter.startsWith(`date${sign}`))?.slice(6) ?? "";
      byId(`date-${end}`).value = /^\d{4}-\d\d-\d\d$/.test(day) ? day : "";
    }
    this.#draw();
  }

  toggle(open = byId("filters").hidden) {
    byId("filters").hidden = !open;
    byId("filters-open").setAttribute("aria-expanded", String(open));
  }

  /** The server's word on a filter, beside the field it came from where that is in sight. */
  complain(message) {
    this.agree();
    const wrong =
      this.list[/filters\[(\d+)\]/.exec(message)?.[1]] ??
      this.list.find((filter) => message.includes(filter)) ??
      this.list.findLast((filter) => words.parts(filter)?.every((part) => message.includes(part))) ??
      this.list.at(-1);
    const form = byId("filters").hidden ? null : this.from.get(wrong);
    const place = form ? byId(`filter-${form}-error`) : byId("filter-error");
    place.textContent = message;
    place.hidden = false;
    for (const field of form ? byId(`filter-${form}`).querySelectorAll("input") : []) {
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-describedby", place.id);
    }
    for (const chip of byId("chips").querySelectorAll("button")) {
      chip.classList.toggle("wrong", chip.dataset.filter === wrong);
    }
  }

  /** The server had nothing to say against the filters. */
  agree() {
    for (const place of document.querySelectorAll(".tools .error")) {
      place.hidden = true;
      place.textContent = "";
    }
    for (const form of FORMS) {
      for (const field of byId(`filter-${form}`).querySelectorAll("[aria-invalid]")) {
        field.removeAttribute("aria-invalid");
        field.removeAttribute("aria-describedby");
      }
    }
    for (const chip of byId("chips").querySelectorAll(".wrong")) chip.classList.remove("wrong");
  }

  /** Called once the filters were used: fields are emptied of what has become a chip. */
  settle() {
    this.agree();
    for (const [filter, form] of this.from) {
      if (form === "folder" && filter === `folder=${byId("folder").value.trim()}`) byId("folder").value = "";
      const made = ["field", "operator", "value"].map((id) => byId(id).value.trim()).join("");
      if (form === "any" && filter === made) byId("field").value = byId("value").value = "";
    }
    this.from.clear();
  }

  #form(name, submitted) {
    byId(`filter-${name}`).addEventListener("submit", (event) => {
      event.preventDefault();
      submitted();
    });
  }

  #date(end) {
    const sign = end === "from" ? ">=" : "<=";
    const day = byId(`date-${end}`).value;
    if (day && day < "1000") return; // a year half typed
    this.list = this.list.filter((filter) => !filter.startsWith(`date${sign[0]}`));
    if (day) this.#add(`date${sign}${day}`, "date");
    else this.#change();
  }

  #add(filter, form) {
    // a wrong filter from the same form makes way for its correction
    const wrong = [...byId("chips").querySelectorAll(".wrong")].map((chip) => chip.dataset.filter);
    this.list = this.list.filter((one) => one !== filter && !(wrong.includes(one) && this.from.get(one) === form));
    this.list.push(filter);
    this.from.set(filter, form);
    this.#change();
  }

  #remove(filter) {
    const at = this.list.indexOf(filter);
    this.set(this.list.filter((one) => one !== filter), this.sure);
    this.from.delete(filter);
    const rest = byId("chips").querySelectorAll("button");
    (rest[Math.min(Math.max(at, 0), rest.length - 1)] ?? byId("filters-open")).focus();
    this.changed();
  }

  #change() {
    this.#draw();
    this.changed();
  }

  #draw() {
    const chips = this.list.map((filter) => this.#chip(words.filter(filter), filter, () => this.#remove(filter)));
    if (this.sure) {
      chips.push(
        this.#chip(`at least ${words.percent(this.sure)} sure`, null, () => {
          this.set(this.list, null);
          byId("filters-open").focus();
          this.changed();
        }),
      );
    }
    byId("chips").replaceChildren(...chips);
    byId("chips").hidden = !chips.length;
  }

  #chip(said, filter, remove) {
    const button = element(
      "button",
      { type: "button", class: "chip", "data-filter": filter, title: "Remove" },
      element("span", { class: "unseen" }, "Remove filter: "),
      element("span", { class: "said" }, said),
      icon("close"),
    );
    button.addEventListener("click", remove);
    return element("li", null, button);
  }

  #saySure() {
    const share = Number(byId("sure").value) / 100;
    byId("sure-shown").textContent = share ? `≥ ${words.percent(share)}` : "any";
  }
}
