/* The panel that adds pictures. The token stays in this tab's session storage, and goes nowhere but into a header. */

import { byId, element } from "./element.js";
import { addPictures, Refusal } from "./server.js";
import { count, pictures } from "./words.js";

const TOKEN = "voken-token";
const AT_ONCE = 8; // files
const BYTES_AT_ONCE = 16 * 2 ** 20;

export class Add {
  /** `added()` is called when the collection has changed. */
  constructor(added) {
    this.dialog = byId("add");
    this.added = added;
    byId("add-open").addEventListener("click", () => this.open());
    byId("add-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send([...byId("files").files]);
    });
  }

  get isOpen() {
    return this.dialog.open;
  }

  open() {
    byId("token").value = sessionStorage.getItem(TOKEN) ?? "";
    this.#say("");
    this.#complain("");
    this.dialog.showModal();
    (byId("token").value ? byId("files") : byId("token")).focus();
  }

  /** Files that were dropped or pasted on the panel. */
  take(files) {
    const all = new DataTransfer();
    for (const file of files) all.items.add(file);
    byId("files").files = all.files;
  }

  async #send(files) {
    const token = byId("token").value.trim();
    this.#complain("");
    if (!token) return this.#complain("Give the token that the server was started with.", "token");
    if (!files.length) return this.#complain("Choose at least one picture.", "files");
    const [progress, send, skipped] = [byId("add-progress"), byId("add-send"), byId("add-skipped")];
    let [done, added, updated] = [0, 0, 0];
    const refused = [];
    skipped.hidden = true;
    progress.max = files.length;
    progress.value = 0;
    progress.hidden = false;
    send.disabled = true;
    try {
      for (const some of portions(files)) {
        this.#say(`Sending ${count(done + 1)} to ${count(done + some.length)} of ${pictures(files.length)}…`);
        const change = await sent(some, token, (seconds) =>
          this.#say(`The server is busy; going on in ${seconds} s.`));
        sessionStorage.setItem(TOKEN, token);
        done += some.length;
        added += change.added.length;
        updated += change.updated.length;
        refused.push(...change.skipped);
        progress.value = done;
      }
      byId("files").value = "";
    } catch (error) {
      const wrong = error instanceof Refusal && (error.status === 401 || error.status === 403);
      if (wrong) sessionStorage.removeItem(TOKEN);
      this.#complain(error.message, wrong ? "token" : null);
    } finally {
      progress.hidden = true;
      send.disabled = false;
    }
    this.#say(done ? `${count(added)} added, ${count(updated)} updated, ${count(refused.length)} skipped.` : "");
    skipped.replaceChildren(...refused.map(({ path, reason }) => element("li", null, `${path}: ${reason}`)));
    skipped.hidden = !refused.length;
    if (done) this.added();
  }

  #say(text) {
    byId("add-state").textContent = text;
  }

  #complain(text, field = null) {
    const place = byId("add-error");
    place.textContent = text;
    place.hidden = !text;
    for (const id of ["token", "files"]) byId(id).setAttribute("aria-invalid", String(id === field));
    if (field) byId(field).focus();
  }
}

/** Few enough files a request that progress shows and no limit of a body is met early. */
function* portions(files) {
  let [some, bytes] = [[], 0];
  for (const file of files) {
    if (some.length && (some.length === AT_ONCE || bytes + file.size > BYTES_AT_ONCE)) {
      yield some;
      [some, bytes] = [[], 0];
    }
    some.push(file);
    bytes += file.size;
  }
  if (some.length) yield some;
}

/** What the server made of files. It is asked again, five times at most, where it wants patience. */
async function sent(files, token, waiting) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await addPictures(files, token);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 413 && files.length === 1) {
        return { added: [], updated: [], skipped: [{ path: files[0].name, reason: error.message }] };
      }
      if (error.again === null || tries === 5) throw error;
      waiting(error.again);
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.again));
    }
  }
}
