/* The folders as a tree with numbers of pictures. A folder's folders are loaded when it is opened. */

import { byId, element, icon } from "./element.js";
import * as server from "./server.js";
import { count, quoted } from "./words.js";

const PAGE = 500;

export class Folders {
  /** `choose(filter)` is called with the filter of a folder, or with null for all pictures. */
  constructor(choose) {
    this.choose = choose;
    this.chosen = null; // the filter of the folder that is shown
    this.version = null;
    byId("folders-open").addEventListener("click", () => this.toggle());
    byId("folders-close").addEventListener("click", () => {
      this.toggle(false);
      byId("folders-open").focus();
    });
  }

  /** Offer the tree if the collection has folders. */
  async offer(version, total) {
    if (this.version === version) return;
    this.version = version;
    this.total = total;
    const { folders } = await server.folders("", 0, 1);
    byId("folders-open").hidden = !folders.length;
    if (!folders.length) this.toggle(false);
    else if (!byId("folders").hidden) await this.#draw();
  }

  async toggle(open = byId("folders").hidden) {
    byId("folders").hidden = !open;
    byId("folders-open").setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("with-folders", open);
    if (open) await this.#draw();
  }

  /** Mark the folder that the filters name. */
  mark(filters) {
    this.chosen = filters.find((filter) => filter.startsWith("folder=")) ?? null;
    for (const button of byId("tree").querySelectorAll(".folder")) this.#current(button);
  }

  #current(button) {
    const isChosen = (button.dataset.filter || null) === this.chosen;
    if (isChosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }

  async #draw() {
    const all = this.#button("All pictures", this.total, null);
    const list = await this.#list("");
    byId("tree").replaceChildren(element("ul", null, element("li", null, element("div", null, all))), list);
  }

  async #list(parent) {
    const found = [];
    for (;;) {
      const { folders, total } = await server.folders(parent, found.length, PAGE);
      found.push(...folders);
      if (!folders.length || found.length >= total) break;
    }
    return element("ul", null, ...found.map((folder) => this.#item(folder)));
  }

  #item({ path, name, pictures: inside, has_folders: hasFolders }) {
    const line = element("div", null, this.#button(name, inside, `folder=${quoted(path)}`));
    const item = element("li", null, line);
    if (!hasFolders) return item;
    const toggle = element(
      "button",
      { type: "button", class: "round expand", "aria-expanded": "false", "aria-label": `Folders in ${name}` },
      icon("next"),
    );
    let list = null;
    toggle.addEventListener("click", async () => {
      const open = toggle.getAttribute("aria-expanded") !== "true";
      toggle.setAttribute("aria-expanded", String(open));
      if (open && !list) {
        list = await this.#list(path);
        item.append(list);
      }
      if (list) list.hidden = !open;
    });
    line.prepend(toggle);
    return item;
  }

  #button(name, inside, filter) {
    const unit = element("span", { class: "unseen" }, inside === 1 ? " picture" : " pictures");
    const button = element(
      "button",
      { type: "button", class: "folder", "data-filter": filter ?? "" },
      element("span", { class: "text" }, name),
      element("span", { class: "soft" }, " ", count(inside), unit),
    );
    button.addEventListener("click", () => this.choose(filter));
    this.#current(button);
    return button;
  }
}
