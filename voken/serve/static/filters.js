/* The active filters, and the forms that add them. A filter is a text that the server parses ("date>=2024-05"). */

import { byId, element, icon } from "./element.js";
import * as words from "./words.js";

const FORMS = ["date", "folder", "any"];

export class Filters {
  /** `changed()` is called when the user has changed `list` or `threshold`. */
  constructor(changed) {
    this.list = [];
    this.threshold = null; // the lowest confidence of a hit, or null
    this.changed = changed;
    this.from = new Map(); // filter → the form that added it
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
    this.#form("confidence", () => {});
    byId("confidence").addEventListener("input", () => this.#showThreshold());
    byId("confidence").addEventListener("change", () => {
      this.threshold = Number(byId("confidence").value) / 100 || null;
      this.#draw();
      this.changed();
    });
  }

  /** Show the forms for the fields that the server can filter by. */
  offer({ fields, calibrated }) {
    byId("filter-date").hidden = !fields.includes("date");
    byId("filter-folder").hidden = !fields.includes("folder");
    byId("filter-confidence").hidden = !calibrated;
    byId("fields").replaceChildren(...fields.map((field) => element("option", { value: field })));
  }

  set(list, threshold) {
    this.list = [...list];
    this.threshold = threshold;
    byId("confidence").value = String(Math.round(100 * (threshold ?? 0)));
    this.#showThreshold();
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

  /** Show the server's error about a filter, beside its form if that is visible. */
  showError(message) {
    this.clearErrors();
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

  /** Remove the server's error about a filter. */
  clearErrors() {
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

  /** After a search that accepted the filters: empty the form fields of the filters that have become chips. */
  accept() {
    this.clearErrors();
    for (const [filter, form] of this.from) {
      if (form === "folder" && filter === `folder=${byId("folder").value.trim()}`) byId("folder").value = "";
      const typed = ["field", "operator", "value"].map((id) => byId(id).value.trim()).join("");
      if (form === "any" && filter === typed) byId("field").value = byId("value").value = "";
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
    if (day && day < "1000") return; // a year that is still being typed
    this.list = this.list.filter((filter) => !filter.startsWith(`date${sign[0]}`));
    if (day) this.#add(`date${sign}${day}`, "date");
    else this.#change();
  }

  #add(filter, form) {
    // a corrected filter replaces the wrong one from the same form
    const wrong = [...byId("chips").querySelectorAll(".wrong")].map((chip) => chip.dataset.filter);
    this.list = this.list.filter((old) => old !== filter && !(wrong.includes(old) && this.from.get(old) === form));
    this.list.push(filter);
    this.from.set(filter, form);
    this.#change();
  }

  #remove(filter) {
    const at = this.list.indexOf(filter);
    this.set(this.list.filter((other) => other !== filter), this.threshold);
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
    if (this.threshold) {
      chips.push(
        this.#chip(`at least ${words.percent(this.threshold)} sure`, null, () => {
          this.set(this.list, null);
          byId("filters-open").focus();
          this.changed();
        }),
      );
    }
    byId("chips").replaceChildren(...chips);
    byId("chips").hidden = !chips.length;
  }

  #chip(text, filter, remove) {
    const button = element(
      "button",
      { type: "button", class: "chip", "data-filter": filter, title: "Remove" },
      element("span", { class: "unseen" }, "Remove filter: "),
      element("span", { class: "text" }, text),
      icon("close"),
    );
    button.addEventListener("click", remove);
    return element("li", null, button);
  }

  #showThreshold() {
    const share = Number(byId("confidence").value) / 100;
    byId("confidence-shown").textContent = share ? `≥ ${words.percent(share)}` : "any";
  }
}
