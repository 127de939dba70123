/* The server's HTTP interface: paths, bodies and errors. This module does not know the page. */

/** The server refused a request. `message` is its sentence; `retryAfter` is the seconds to wait, or null. */
export class Refusal extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The server did not answer. */
export class Unreachable extends Error {}

export const about = (signal) => ask("about", { signal });

/** Search with the body of POST /search; the answer's `results` has one entry. */
export const search = (body, signal) =>
  ask("search", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });

/** A part of the collection, newest first. */
export const list = ({ filters, offset, limit }, signal) => ask(`pictures?${query({ filters, offset, limit })}`, { signal });

export const timeline = (filters, signal) => ask(`timeline?${query({ filters })}`, { signal });

export const folders = (parent, offset, limit) => ask(`folders?${query({ parent, offset, limit })}`);

export const values = (field, contains, signal) => ask(`values?${query({ field, contains })}`, { signal });

export const examples = () => ask("examples");

/** What is known of a picture, by its `id`; its `url`, if it has one, is also there for ids that no address can hold. */
export function details({ id, url = address(id) }, signal) {
  const place = sameOrigin(url);
  if (!place?.pathname.includes("/pictures/")) return Promise.reject(new Refusal(404, "There is no such picture.", null));
  return ask(place.pathname.replace("/pictures/", "/details/"), { signal });
}

/** The files of pictures as a blob ("zip"), or a "list" of their paths. */
export async function exported(ids, format) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ids, format }) };
  return ask("export", options, (response) => response.blob());
}

function query({ filters = [], ...rest }) {
  const parameters = new URLSearchParams(rest);
  for (const filter of filters) parameters.append("filters", filter);
  return parameters;
}

export function searchPicture(file, { k, filters }, signal) {
  const form = new FormData();
  form.append("file", file, file.name || "picture");
  form.append("k", String(k));
  form.append("layout", "true");
  for (const filter of filters) form.append("filters", filter);
  return ask("search/picture", { method: "POST", body: form, signal });
}

export function addPictures(files, token) {
  const form = new FormData();
  for (const file of files) form.append("files", file, file.name);
  return ask("pictures", { method: "POST", headers: { Authorization: `Bearer ${token}` }, body: form });
}

/** The address of the picture with this id. */
export function address(id) {
  const parts = id.split("/");
  // browsers remove parts of dots from an address; then slashes are quoted, too
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

async function ask(path, options, read = (response) => response.json()) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("The server does not answer.");
  }
  let content = null;
  try {
    content = await (response.ok ? read(response) : response.json());
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // a proxy's page, or a broken connection
    if (response.ok) throw new Unreachable("The server’s answer was cut short.");
  }
  if (response.ok) return content;
  const message = typeof content?.error === "string" ? content.error : `The server answered ${response.status}.`;
  throw new Refusal(response.status, message, secondsToWait(response));
}

/** The seconds until the request may be sent again, or null if the server does not say. */
function secondsToWait(response) {
  if (response.status !== 503 && response.status !== 429) return null;
  const header = response.headers.get("Retry-After") ?? "";
  const seconds = /^\d+$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(1, Math.ceil(seconds)) : 2;
}
