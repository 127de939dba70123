/* The page: what is asked, its answer, the address bar, and who is told of what. */

import { Add } from "./add.js";
import { byId, element } from "./element.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import * as server from "./server.js";
import { Viewer } from "./viewer.js";
import { caption, duration, pictures } from "./words.js";

const PAUSE = 150; // ms without a key before a search
const PATIENCE = 200; // ms before a search is said to take its time
const SPOKEN = 600; // ms without news before a screen reader hears it
const PAGES = [60, 120, 200]; // pictures an answer; the last is the most the server gives
const LONGEST_WAIT = 30; // s between tries of a server that does not answer

/* What is asked: {kind: "words", text}, {kind: "like", id} or {kind: "picture", file, number}. */
let asked = { kind: "words", text: "" };
let page = 0; // of PAGES
/* The answer on the screen: {key, request, hits}. */
let shown = null;
let facts = { name: "", pictures: 0, version: null, calibrated: false, can_encode: false, examples: [] }; // GET /about
let controller = null; // of the request under way
let failures = 0; // in a row
let settled = true; // the next query typed is a new step of the history
const files = new Map(); // number → picture searched with, for Back
const liked = new Map(); // id → hit whose like was searched, for its caption
const timers = { typing: 0, again: 0, spoken: 0 };

const query = byId("query");
const grid = new Grid(byId("grid"), (place) => open(place));
const filters = new Filters(() => change());
const add = new Add(() => refresh().then(() => run()));
const viewer = new Viewer({
  moved: (hit) => history.replaceState({ ...history.state, show: hit.id }, "", href(hit.id)),
  closed: leave,
  similar: (hit) => {
    // the address of the open picture stays in the history: Back comes to it again
    viewer.dialog.dataset.leaving = "true";
    viewer.close();
    liked.set(hit.id, hit);
    ask({ kind: "like", id: hit.id });
  },
});

/* ---- asking ---- */

function request() {
  const common = { k: PAGES[page], filters: [...filters.list], threshold: facts.calibrated ? filters.sure : null };
  if (asked.kind === "words") {
    const text = asked.text.trim();
    return text ? { ...common, query: text } : null;
  }
  return asked.kind === "like" ? { ...common, like: asked.id } : { ...common, file: asked.file, number: asked.number };
}

/** One text for one question, however many pictures of its answer are asked for. */
function keyOf(wanted) {
  return wanted && JSON.stringify({ ...wanted, file: undefined, k: undefined });
}

/** Ask something new, as a step of the history. */
function ask(what, { push = true } = {}) {
  asked = what;
  page = 0;
  drawQuestion();
  remember(push);
  return run();
}

/** The filters changed. */
function change() {
  page = 0;
  settled = true;
  remember(true);
  run();
}

async function run({ focus = false, keepScroll = false } = {}) {
  clearTimeout(timers.again);
  flush();
  controller?.abort();
  const mine = (controller = new AbortController());
  const wanted = request();
  working(false);
  if (!wanted) return idle();
  const slow = setTimeout(() => {
    if (controller !== mine) return;
    working(true);
    if (!shown) grid.wait(24);
  }, PATIENCE);
  try {
    let answer = await answerTo(wanted, mine.signal);
    let unsure = false;
    if (wanted.threshold !== null && !answer.results[0].hits.length) {
      answer = await answerTo({ ...wanted, threshold: null }, mine.signal); // what comes nearest
      unsure = true;
    }
    if (controller !== mine) return; // overtaken by a newer question
    failures = 0;
    present(wanted, answer, { keepScroll, unsure });
    if (focus) grid.focus(0);
  } catch (error) {
    if (controller !== mine) return;
    if (isAbout(wanted.filters, error)) {
      filters.complain(error.message);
      notice(null);
      if (!shown) grid.clear();
    } else {
      fail(error, run);
    }
  } finally {
    clearTimeout(slow);
    if (controller === mine) working(false);
  }
}

const answerTo = (wanted, signal) =>
  wanted.file ? server.searchPicture(wanted.file, wanted, signal) : server.search({ ...wanted, why: false }, signal);

/* ---- answers ---- */

/** `unsure`: the pictures shown are less sure than was asked for. */
function present(wanted, answer, { keepScroll, unsure }) {
  const { hits, no_match: unlikely } = answer.results[0];
  const noMatch = hits.length > 0 && (unlikely || unsure);
  const key = keyOf(wanted);
  const fresh = key !== shown?.key;
  shown = { key, request: unsure ? { ...wanted, threshold: null } : wanted, hits };
  filters.settle();
  grid.show(hits, { dim: () => noMatch });
  if (fresh && !keepScroll) window.scrollTo({ top: 0 });
  const found = `${pictures(hits.length)} · ${duration(answer.seconds)}`;
  summary(hits.length ? found : "");
  byId("more").hidden = hits.length < PAGES[page] || page === PAGES.length - 1;
  byId("thumb-search").hidden = !hits.length;
  if (!hits.length) {
    const filtered = wanted.filters.length > 0;
    notice(
      filtered ? "No picture passes these filters" : "Nothing found",
      filtered ? "Take one away, or ask for something else." : "Say it in other words.",
      filtered ? { said: "Remove all filters", done: () => { filters.set([], null); change(); } } : null,
    );
  } else if (noMatch) {
    notice("Nothing matches well", hits.length === 1 ? "This comes nearest." : "These come nearest.");
  } else {
    notice(null);
  }
  speak(hits.length ? `${noMatch ? "Nothing matches well. Nearest: " : ""}${found}` : byId("notice-title").textContent);
  if (answer.version !== facts.version) refresh().catch(() => {});
  follow();
}

/** Nothing is asked. */
function idle() {
  shown = null;
  failures = 0;
  grid.clear();
  filters.agree();
  summary("");
  byId("more").hidden = true;
  byId("thumb-search").hidden = true;
  const how = facts.can_encode ? ", or give a picture to find others like it." : ".";
  if (facts.version === null) notice(null); // not told yet
  else notice(`Search ${pictures(facts.pictures)}`, `Say what the picture shows${how}`);
  byId("examples").hidden = !facts.examples.length;
  speak("");
}

/** Whether the server found fault with a filter. */
function isAbout(given, error) {
  const refused = error instanceof server.Refusal && [400, 422].includes(error.status);
  return given.length > 0 && refused && /filter/i.test(error.message);
}

/** Says what went wrong; `again` is called where trying again may help, by itself or when somebody wants it. */
function fail(error, again) {
  if (!shown) grid.clear();
  summary("");
  const trying = { said: "Try now", done: () => again() };
  if (error instanceof server.Unreachable) {
    failures += 1;
    const wait = Math.min(LONGEST_WAIT, 2 ** failures);
    countdown("The server does not answer", "Is voken serve still running?", wait, trying);
  } else if (error instanceof server.Refusal && error.again !== null) {
    const title = error.status === 429 ? "Too many searches at once" : "The server is busy";
    countdown(title, error.message, error.again, trying);
  } else if (error instanceof server.Refusal) {
    notice("That did not work", error.message, error.status >= 500 ? trying : null);
  } else {
    throw error;
  }
  speak(`${byId("notice-title").textContent}. ${error.message}`);
}

/** A notice that tries again by itself. */
function countdown(title, text, seconds, action) {
  let left = seconds;
  clearTimeout(timers.again);
  const tick = () => {
    if (left === 0) return action.done();
    notice(title, `${text} Trying again in ${left} s.`, action);
    left -= 1;
    timers.again = setTimeout(tick, 1000);
    return null;
  };
  tick();
}

/** What stands above the pictures; `title` null: nothing. */
function notice(title, text = "", action = null) {
  byId("notice").hidden = title === null;
  byId("notice-title").textContent = title ?? "";
  byId("notice-text").textContent = text;
  byId("notice-action").hidden = !action;
  byId("notice-action").textContent = action?.said ?? "";
  byId("notice-action").onclick = action?.done ?? null;
  byId("examples").hidden = true;
}

function summary(text) {
  byId("summary").textContent = text;
}

/** For those who listen: what is so once typing rests. */
function speak(text) {
  clearTimeout(timers.spoken);
  timers.spoken = setTimeout(() => {
    byId("state").textContent = text;
  }, SPOKEN);
}

function working(now) {
  byId("working").classList.toggle("on", now);
  byId("grid").setAttribute("aria-busy", String(now));
}

/* ---- the open picture ---- */

function open(place, { push = true } = {}) {
  const hit = shown.hits[place];
  if (push) {
    flush();
    settled = true;
    history.pushState({ ...history.state, show: hit.id, opened: true }, "", href(hit.id));
  }
  viewer.open(shown.hits, place, {
    query: shown.request.query ?? "",
    total: facts.pictures,
    explain: explainer(shown),
  });
}

/** Explanations of an answer, asked for once and only when somebody wants one. */
function explainer(answer) {
  return async (hit) => {
    if (answer.request.query === undefined) return hit.why ?? null;
    answer.explained ??= server.search({ ...answer.request, why: true });
    try {
      const { results } = await answer.explained;
      const found = results[0].hits.find((one) => one.id === hit.id);
      if (!found) throw new Error("The collection has changed since. Search again.");
      return found.why;
    } catch (error) {
      answer.explained = undefined;
      throw error;
    }
  };
}

/** The viewer was closed, by whatever means. */
function leave(place) {
  grid.focus(place);
  if (viewer.dialog.dataset.leaving) {
    delete viewer.dialog.dataset.leaving;
  } else if (new URLSearchParams(location.search).has("show")) {
    if (history.state?.opened) history.back();
    else history.replaceState({ ...history.state, show: undefined }, "", href());
  }
}

/** Open or close the viewer as the address says. */
function follow() {
  const id = history.state?.show ?? new URLSearchParams(location.search).get("show");
  if (id === null) return viewer.close();
  const place = shown?.hits.findIndex((hit) => hit.id === id) ?? -1;
  if (place >= 0 && !viewer.isOpen) open(place, { push: false });
  return null;
}

/* ---- the address bar, and the history's own memory: ids may be names that no address can hold ---- */

function href(opened = null) {
  const address = new URLSearchParams();
  if (asked.kind === "words" && asked.text.trim()) address.set("q", asked.text.trim());
  if (asked.kind === "like") address.set("like", asked.id);
  for (const filter of filters.list) address.append("filter", filter);
  if (filters.sure) address.set("sure", String(filters.sure));
  if (opened !== null) address.set("show", opened);
  const text = address.toString();
  return text ? `?${text}` : location.pathname;
}

function remember(push) {
  const state = { picture: asked.number, like: asked.id };
  const other = new URL(href(), location.href).href !== location.href || asked.kind === "picture";
  if (push && other) history.pushState(state, "", href());
  else history.replaceState(state, "", href());
  sayTitle();
}

/** Ask what the address says. */
function recall() {
  clearTimeout(timers.typing);
  timers.typing = 0;
  settled = true;
  const address = new URLSearchParams(location.search);
  const number = history.state?.picture;
  if (files.has(number)) asked = { kind: "picture", file: files.get(number), number };
  else if (address.has("like")) asked = { kind: "like", id: history.state?.like ?? address.get("like") };
  else asked = { kind: "words", text: address.get("q") ?? "" };
  const sure = Number(address.get("sure"));
  filters.set(address.getAll("filter"), sure > 0 && sure < 1 ? sure : null);
  drawQuestion();
  sayTitle();
  const wanted = request();
  if (shown && keyOf(wanted) === shown.key) return follow();
  page = 0;
  return run({ keepScroll: true });
}

function sayTitle() {
  const what = { words: asked.text?.trim(), like: `like ${asked.id}`, picture: asked.file?.name }[asked.kind];
  document.title = what ? `${what} – ${facts.name || "Pictures"}` : facts.name || "Pictures";
}

/* ---- the search box ---- */

query.addEventListener("input", () => {
  asked = { kind: "words", text: query.value };
  page = 0;
  drawQuestion();
  clearTimeout(timers.typing);
  timers.typing = setTimeout(run, PAUSE);
});
query.addEventListener("blur", () => {
  if (timers.typing) run();
  settled = true;
});
query.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && shown?.hits.length) {
    event.preventDefault();
    grid.focus(0);
  } else if (event.key === "Escape" && !query.value) {
    query.blur();
  } else if (event.key === "Backspace" && !query.value && asked.kind !== "words") {
    ask({ kind: "words", text: "" });
  }
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  flush();
  settled = true;
  if (shown && keyOf(request()) === shown.key) grid.focus(0);
  else run({ focus: true });
});
byId("clear").addEventListener("click", () => restart());
byId("like-clear").addEventListener("click", () => restart());

function restart() {
  ask({ kind: "words", text: "" });
  query.focus();
}

/** What was typed goes into the history, and no longer waits for a pause. */
function flush() {
  if (!timers.typing) return;
  clearTimeout(timers.typing);
  timers.typing = 0;
  remember(settled);
  settled = false;
}

function drawQuestion() {
  if (asked.kind === "words" && query.value !== asked.text) query.value = asked.text;
  if (asked.kind !== "words") query.value = "";
  byId("clear").hidden = !query.value;
  byId("like").hidden = asked.kind === "words";
  query.placeholder = asked.kind === "words" ? "What does the picture show?" : "or words";
  if (asked.kind === "like") {
    const hit = liked.get(asked.id);
    byId("like-name").textContent = `Like ${hit ? caption(hit) : asked.id}`;
    draw(pictureOf(hit, asked.id));
  } else if (asked.kind === "picture") {
    byId("like-name").textContent = `Like ${asked.file.name || "the picture given"}`;
    draw(createImageBitmap(asked.file));
  }
}

async function pictureOf(hit, id) {
  const image = new Image();
  image.src = hit ? server.thumbnail(hit, 256) : `${server.address(id)}?thumbnail=256`;
  await image.decode();
  return image;
}

/** The middle of a picture in the search box: on a canvas, as a page that trusts its own origin only shows no blobs. */
async function draw(coming) {
  const canvas = byId("like-picture");
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const drawn = asked;
  try {
    const picture = await coming;
    if (asked !== drawn) return;
    const [width, height] = [picture.naturalWidth ?? picture.width, picture.naturalHeight ?? picture.height];
    const side = Math.min(width, height);
    pen.drawImage(picture, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
  } catch {
    // a kind of picture that this browser cannot show; the server may know it
  }
}

/* ---- pictures to search with ---- */

function searchWith(file) {
  const number = files.size + 1;
  files.set(number, file);
  viewer.dialog.dataset.leaving = "true";
  viewer.close();
  delete viewer.dialog.dataset.leaving;
  ask({ kind: "picture", file, number });
}

/** Files that came by drop or paste, wherever they are wanted. */
function take(given) {
  const some = [...given];
  if (!some.length) return false;
  if (add.isOpen) add.take(some);
  else if (facts.can_encode) searchWith(some[0]);
  else return false;
  return true;
}

byId("by-picture").addEventListener("click", () => byId("picture-file").click());
byId("picture-file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (take(event.clipboardData?.files ?? [])) event.preventDefault();
});

let ownDrag = false; // a picture of the page that is dragged elsewhere comes with a file too
addEventListener("dragstart", () => (ownDrag = true));
addEventListener("dragend", () => (ownDrag = false));
const hasFiles = (event) => !ownDrag && (event.dataTransfer?.types.includes("Files") ?? false);
let depth = 0; // dragenter and dragleave come for every element on the way
function dragging(by) {
  depth = Math.max(0, depth + by);
  byId("drop").hidden = depth === 0 || add.isOpen || !facts.can_encode;
}
addEventListener("dragenter", (event) => {
  if (hasFiles(event)) dragging(1);
});
addEventListener("dragleave", (event) => {
  if (hasFiles(event)) dragging(-1);
});
addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault(); // or the browser would leave the page for the file
});
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragging(-depth);
  take(event.dataTransfer.files);
});

/* ---- the rest ---- */

byId("more").addEventListener("click", async () => {
  const first = shown.hits.length;
  page += 1;
  await run();
  if (document.activeElement === document.body || document.activeElement === byId("more")) grid.focus(first);
});
byId("thumb-search").addEventListener("click", () => {
  query.focus();
  query.select();
});
byId("keys-open").addEventListener("click", () => byId("keys").showModal());
for (const sheet of document.querySelectorAll("dialog.sheet")) {
  sheet.addEventListener("click", (event) => {
    if (event.target === sheet) sheet.close();
  });
}
addEventListener("popstate", () => recall());
addEventListener("online", () => {
  if (failures) run();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input:not([type=range]), select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "?") {
    byId("keys").showModal();
  }
});

async function refresh() {
  facts = await server.about();
  byId("name").textContent = facts.name;
  byId("size").textContent = pictures(facts.pictures);
  byId("by-picture").hidden = !facts.can_encode;
  byId("add-open").hidden = !facts.uploads;
  filters.offer(facts);
  byId("examples").replaceChildren(
    ...facts.examples.map((text) => {
      const button = element("button", { type: "button", class: "chip" }, text);
      button.addEventListener("click", () => ask({ kind: "words", text }));
      return element("li", null, button);
    }),
  );
  sayTitle();
}

async function begin() {
  try {
    await refresh();
  } catch (error) {
    // where something is asked, its own answer says the same, and what is known of the collection comes with it
    if (!request()) fail(error, begin);
    return;
  }
  failures = 0;
  if (!facts.calibrated) filters.set(filters.list, null);
  if (!request()) idle();
  else if (filters.sure) run();
}

recall();
begin();
if (matchMedia("(hover: hover)").matches) query.focus();
