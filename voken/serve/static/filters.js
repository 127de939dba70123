/* The active filters, and the forms that add them. A filter is a text that the server parses ("date>=2024-05"). */

import { byId, element, icon } from "./element.js";
import * as server from "./server.js";
import * as words from "./words.js";

const FORMS = ["date", "folder", "any"];
const TYPING_PAUSE = 150; // ms without a key before values are asked for
/* Confidences that the slider can require. They are closer where models are: most right hits have a few percent. */
const CONFIDENCES = [null, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95];
const FEWEST_STOPS = 6;

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
    this.#complete("folder", () => "folder");
    this.#complete("value", () => byId("field").value.trim());
    byId("field").addEventListener("change", () => byId("values").replaceChildren());
    byId("confidence").addEventListener("input", () => this.#showThreshold());
    byId("confidence").addEventListener("change", () => {
      this.threshold = CONFIDENCES[byId("confidence").value];
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
    this.#scale();
    this.#showThreshold();
    for (const [end, sign] of [["from", ">="], ["to", "<="]]) {
      const day = this.list.find((filter) => filter.startsWith(`date${sign}`))?.slice(6) ?? "";
      byId(`date-${end}`).value = /^\d{4}-\d\d-\d\d$/.test(day) ? day : "";
    }
    this.#draw();
  }

  /** Fit the slider to the confidences of some hits: it ends above the highest of them. */
  measured(confidences) {
    const numbers = confidences.filter((value) => typeof value === "number");
    this.confidences = numbers;
    this.highest = numbers.length ? Math.max(...numbers) : null;
    this.#scale();
    this.#showThreshold();
  }

  #scale() {
    const stops = CONFIDENCES.filter((stop) => stop === null || this.highest == null || stop <= this.highest).length;
    const chosen = this.threshold === null ? 0 : CONFIDENCES.findLastIndex((stop) => stop !== null && stop <= this.threshold);
    const slider = byId("confidence");
    slider.max = String(Math.min(CONFIDENCES.length - 1, Math.max(FEWEST_STOPS, stops, chosen)));
    slider.value = String(Math.max(0, chosen));
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
        this.#chip(`at least ${words.percent(this.threshold)} confidence`, null, () => {
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
    const chosen = CONFIDENCES[byId("confidence").value];
    const shown = chosen === null ? "any" : `≥ ${words.percent(chosen)}`;
    byId("confidence-shown").textContent = shown;
    byId("confidence").setAttribute("aria-valuetext", shown);
    const known = this.confidences?.length && this.threshold === null;
    const note = "Only pictures that are right with at least this probability.";
    const passing = known && chosen !== null ? this.confidences.filter((value) => value >= chosen).length : null;
    byId("confidence-note").textContent =
      passing === null ? note : `${note} Of the ${words.count(this.confidences.length)} on the page: ${words.count(passing)}.`;
  }

  /** Offer values of a field while one is typed. */
  #complete(id, fieldName) {
    const input = byId(id);
    let timer = 0;
    let controller = null;
    const ask = async () => {
      const field = fieldName();
      controller?.abort();
      if (!field) return;
      controller = new AbortController();
      try {
        const { values } = await server.values(field, input.value.trim(), controller.signal);
        const options = values.map(({ value, pictures }) =>
          element("option", { value: words.quoted(value), label: `${value} (${words.count(pictures)})` }));
        input.list.replaceChildren(...options);
      } catch {
        input.list.replaceChildren(); // no such field, or a newer request; the search says what is wrong
      }
    };
    input.addEventListener("focus", ask);
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(ask, TYPING_PAUSE);
    });
  }
}
