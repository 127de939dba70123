/* The panel that adds pictures. The token stays in this tab's session storage, and is sent only in a header. */

import { byId, element } from "./element.js";
import { addPictures, Refusal } from "./server.js";
import { count, pictures } from "./words.js";

const TOKEN = "voken-token";
const BATCH_FILES = 8;
const BATCH_BYTES = 16 * 2 ** 20;

export class Add {
  /** `changed()` is called when the collection has changed. */
  constructor(changed) {
    this.dialog = byId("add");
    this.changed = changed;
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
    this.#report("");
    this.#complain("");
    this.dialog.showModal();
    (byId("token").value ? byId("files") : byId("token")).focus();
  }

  /** Choose files that were dropped or pasted on the panel. */
  choose(files) {
    const all = new DataTransfer();
    for (const file of files) all.items.add(file);
    byId("files").files = all.files;
  }

  async #send(files) {
    const token = byId("token").value.trim();
    this.#complain("");
    if (!token) return this.#complain("Give the token that the server was started with.", "token");
    if (!files.length) return this.#complain("Choose at least one picture.", "files");
    const [progress, button, skipped] = [byId("add-progress"), byId("add-send"), byId("add-skipped")];
    let [sent, added, updated] = [0, 0, 0];
    const rejects = [];
    skipped.hidden = true;
    progress.max = files.length;
    progress.value = 0;
    progress.hidden = false;
    button.disabled = true;
    try {
      for (const batch of batches(files)) {
        this.#report(`Sending ${count(sent + 1)} to ${count(sent + batch.length)} of ${pictures(files.length)}…`);
        const change = await send(batch, token, (seconds) =>
          this.#report(`The server is busy. Trying again in ${seconds} s.`));
        sessionStorage.setItem(TOKEN, token);
        sent += batch.length;
        added += change.added.length;
        updated += change.updated.length;
        rejects.push(...change.skipped);
        progress.value = sent;
      }
      byId("files").value = "";
    } catch (error) {
      const badToken = error instanceof Refusal && (error.status === 401 || error.status === 403);
      if (badToken) sessionStorage.removeItem(TOKEN);
      this.#complain(error.message, badToken ? "token" : null);
      if (!badToken) rejects.push(...files.slice(sent).map(({ name }) => ({ path: name, reason: "not sent" })));
    } finally {
      progress.hidden = true;
      button.disabled = false;
    }
    this.#report(sent ? `${count(added)} added, ${count(updated)} updated, ${count(rejects.length)} skipped.` : "");
    skipped.replaceChildren(...rejects.map(({ path, reason }) => element("li", null, `${path}: ${reason}`)));
    skipped.hidden = !rejects.length;
    if (sent) this.changed();
  }

  #report(text) {
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

/** Batches so small that the progress bar moves and no request is too long. */
function* batches(files) {
  let [batch, bytes] = [[], 0];
  for (const file of files) {
    if (batch.length && (batch.length === BATCH_FILES || bytes + file.size > BATCH_BYTES)) {
      yield batch;
      [batch, bytes] = [[], 0];
    }
    batch.push(file);
    bytes += file.size;
  }
  if (batch.length) yield batch;
}

/** Send files and return the change that the server reports. A busy server gets up to five requests. */
async function send(files, token, waiting) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await addPictures(files, token);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 413 && files.length === 1) {
        return { added: [], updated: [], skipped: [{ path: files[0].name, reason: error.message }] };
      }
      if (error.retryAfter === null || tries === 5) throw error;
      waiting(error.retryAfter);
      await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
    }
  }
}
