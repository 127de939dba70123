/* The server's HTTP interface. It knows paths, bodies and errors, and nothing of the page. */

/** The server refused a request. `message` is its sentence; `again` is seconds to wait before trying again, or null. */
export class Refusal extends Error {
  constructor(status, message, again) {
    super(message);
    this.status = status;
    this.again = again;
  }
}

/** There was no answer. */
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

/** The address of a picture of which only the id is known. */
export function address(id) {
  const parts = id.split("/");
  // browsers remove parts of dots, as if they were folders
  const plain = parts.every((part) => !["", ".", ".."].includes(part));
  const path = plain ? parts.map((part) => encodeURIComponent(part)).join("/") : encodeURIComponent(id);
  return new URL(`pictures/${path}`, document.baseURI).href;
}

/** The address of a hit's thumbnail, at most `size` pixels per side; null if it is on another server. */
export function thumbnail(hit, size) {
  const address = sameOrigin(hit.thumbnail);
  if (!address) return null;
  address.searchParams.set("thumbnail", String(size));
  return address.href;
}

/** The address of a hit's file; null if it is on another server. */
export const original = (hit) => sameOrigin(hit.url)?.href ?? null;

function sameOrigin(text) {
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
  let content = null;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // the page of a proxy, or a connection that broke
    if (response.ok) throw new Unreachable("The server’s answer was cut short.");
  }
  if (response.ok) return content;
  const message = typeof content?.error === "string" ? content.error : `The server answered ${response.status}.`;
  throw new Refusal(response.status, message, retryAfter(response));
}

/** Seconds to wait, or null if the server does not ask to wait. */
function retryAfter(response) {
  if (response.status !== 503 && response.status !== 429) return null;
  const header = response.headers.get("Retry-After") ?? "";
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : 2;
}
