/* The server's HTTP interface. It knows paths, bodies and errors, and nothing of the page. */

/** The server answered, and said no. `message` is its own sentence; `again` the seconds after which to ask again. */
export class Refusal extends Error {
  constructor(status, message, again) {
    super(message);
    this.status = status;
    this.again = again;
  }
}

/** No answer at all. */
export class Unreachable extends Error {}

export const about = (signal) => ask("about", { signal });

/** `body` as in POST /search; the answer's `results` has one entry. */
export const search = (body, signal) =>
  ask("search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

export function searchPicture(file, { k, filters }, signal) {
  const form = new FormData();
  form.append("file", file, file.name || "picture");
  form.append("k", String(k));
  for (const filter of filters) form.append("filters", filter);
  return ask("search/picture", { method: "POST", body: form, signal });
}

export function addPictures(files, token) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  return ask("pictures", { method: "POST", headers: { Authorization: `Bearer ${token}` }, body: form });
}

/** Where a picture of the collection is, by its id, as far as it is only an id that is known. */
export function address(id) {
  const parts = id.split("/");
  // browsers take parts of dots away, as if they were folders
  const plain = parts.every((part) => !["", ".", ".."].includes(part));
  const path = plain ? parts.map((part) => encodeURIComponent(part)).join("/") : encodeURIComponent(id);
  return new URL(`pictures/${path}`, document.baseURI).href;
}

/** The hit's picture at most `size` pixels a side; null where the address is not one of this server's. */
export function thumbnail(hit, size) {
  const address = own(hit.thumbnail);
  if (!address) return null;
  address.searchParams.set("thumbnail", String(size));
  return address.href;
}

/** The hit's original; null as above. */
export const original = (hit) => own(hit.url)?.href ?? null;

function own(text) {
  try {
    const address = new URL(text, document.baseURI);
    return address.origin === location.origin ? address : null;
  } catch {
    return null;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer.");
  }
  let said = null;
  try {
    said = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // a proxy's own page, or a connection that broke half-way
    if (response.ok) throw new Unreachable("The server’s answer was cut short.");
  }
  if (response.ok) return said;
  const message = typeof said?.error === "string" ? said.error : `The server answered ${response.status}.`;
  throw new Refusal(response.status, message, retryAfter(response));
}

/** Seconds to wait, or null where the server does not ask for patience. */
function retryAfter(response) {
  if (response.status !== 503 && response.status !== 429) return null;
  const given = response.headers.get("Retry-After") ?? "";
  const seconds = /^\d+$/.test(given) ? Number(given) : (Date.parse(given) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : 2;
}
