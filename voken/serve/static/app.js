/* The page: the question, its answer, the address bar, and what connects the parts. */

import { Add } from "./add.js";
import { byId, element } from "./element.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import * as server from "./server.js";
import { Viewer } from "./viewer.js";
import { caption, duration, pictures } from "./words.js";

const PAUSE = 150; // ms without a key before a search
const PATIENCE = 200; // ms before the page shows that a search is running
const SPOKEN = 600; // ms without changes before a screen reader is told
const PAGES = [60, 120, 200]; // pictures per answer; the last is the server's limit
const LONGEST_WAIT = 30; // s between tries of a server that does not answer

/* The question: {kind: "words", text}, {kind: "like", id} or {kind: "picture", file, number}. */
let question = { kind: "words", text: "" };
let page = 0; // of PAGES
/* The answer on the screen: {key, request, hits}. */
let current = null;
/* GET /about. */
let collection = { name: "", pictures: 0, version: null, calibrated: false, can_encode: false, examples: [] };
let controller = null; // of the request under way
let failures = 0; // in a row, to reach the server
let newStep = true; // the next query typed is a new step of the history
const files = new Map(); // number → picture of a search by picture, for Back
const examples = new Map(); // id → hit of a "similar" search, for its caption
const timers = { typing: 0, again: 0, spoken: 0 };

const query = byId("query");
const grid = new Grid(byId("grid"), (place) => open(place));
const filters = new Filters(() => change());
const add = new Add(() => refresh().then(() => run()));
const viewer = new Viewer({
  moved: (hit) => history.replaceState({ ...history.state, show: hit.id }, "", href(hit.id)),
  closed: leave,
  similar: (hit) => {
    // the address of the open picture stays in the history, so that Back returns to it
    viewer.dialog.dataset.leaving = "true";
    viewer.close();
    examples.set(hit.id, hit);
    ask({ kind: "like", id: hit.id });
  },
});

/* ---- asking ---- */

function request() {
  const threshold = collection.calibrated ? filters.threshold : null;
  const common = { k: PAGES[page], filters: [...filters.list], threshold };
  if (question.kind === "words") {
    const text = question.text.trim();
    return text ? { ...common, query: text } : null;
  }
  if (question.kind === "like") return { ...common, like: question.id };
  return { ...common, file: question.file, number: question.number };
}

/** Equal for equal questions, however many pictures of the answer are requested. */
function keyOf(body) {
  return body && JSON.stringify({ ...body, file: undefined, k: undefined });
}

/** Ask a new question, as a step of the history. */
function ask(next, { push = true } = {}) {
  question = next;
  page = 0;
  drawQuestion();
  remember(push);
  return run();
}

/** The filters changed. */
function change() {
  page = 0;
  newStep = true;
  remember(true);
  run();
}

async function run({ focus = false, keepScroll = false } = {}) {
  clearTimeout(timers.again);
  flush();
  controller?.abort();
  const mine = (controller = new AbortController());
  const body = request();
  working(false);
  if (!body) return idle();
  const slow = setTimeout(() => {
    if (controller !== mine) return;
    working(true);
    if (!current) grid.wait(24);
  }, PATIENCE);
  try {
    let answer = await answerTo(body, mine.signal);
    let unsure = false;
    if (body.threshold !== null && !answer.results[0].hits.length) {
      answer = await answerTo({ ...body, threshold: null }, mine.signal); // the nearest
      unsure = true;
    }
    if (controller !== mine) return; // a newer question was asked meanwhile
    failures = 0;
    present(body, answer, { keepScroll, unsure });
    if (focus) grid.focus(0);
  } catch (error) {
    if (controller !== mine) return;
    if (isAbout(body.filters, error)) {
      filters.complain(error.message);
      notice(null);
      if (!current) grid.clear();
    } else {
      fail(error, run);
    }
  } finally {
    clearTimeout(slow);
    if (controller === mine) working(false);
  }
}

const answerTo = (body, signal) =>
  body.file ? server.searchPicture(body.file, body, signal) : server.search({ ...body, why: false }, signal);

/* ---- answers ---- */

/** `unsure`: the hits have less confidence than the filter demands. */
function present(body, answer, { keepScroll, unsure }) {
  const { hits, no_match: unlikely } = answer.results[0];
  const noMatch = hits.length > 0 && (unlikely || unsure);
  const key = keyOf(body);
  const fresh = key !== current?.key;
  current = { key, request: unsure ? { ...body, threshold: null } : body, hits };
  filters.accept();
  grid.show(hits, { dim: () => noMatch });
  if (fresh && !keepScroll) window.scrollTo({ top: 0 });
  const counts = `${pictures(hits.length)} · ${duration(answer.seconds)}`;
  summary(hits.length ? counts : "");
  byId("more").hidden = hits.length < PAGES[page] || page === PAGES.length - 1;
  byId("thumb-search").hidden = !hits.length;
  if (!hits.length) {
    const filtered = body.filters.length > 0;
    notice(
      filtered ? "No picture passes these filters" : "No pictures found",
      filtered ? "Remove a filter, or search for something else." : "Try other words.",
      filtered ? { label: "Remove all filters", act: () => { filters.set([], null); change(); } } : null,
    );
  } else if (noMatch) {
    notice("Nothing matches well", hits.length === 1 ? "This is the nearest." : "These are the nearest.");
  } else {
    notice(null);
  }
  const verdict = noMatch ? "Nothing matches well. Nearest: " : "";
  speak(hits.length ? verdict + counts : byId("notice-title").textContent);
  if (answer.version !== collection.version) refresh().catch(() => {});
  follow();
}

/** There is no question. */
function idle() {
  current = null;
  failures = 0;
  grid.clear();
  filters.clearErrors();
  summary("");
  byId("more").hidden = true;
  byId("thumb-search").hidden = true;
  const how = collection.can_encode ? ", or choose a picture to find similar ones." : ".";
  if (collection.version === null) notice(null); // not known yet
  else notice(`Search ${pictures(collection.pictures)}`, `Describe what the picture shows${how}`);
  byId("examples").hidden = !collection.examples.length;
  speak("");
}

/** Whether the server refused one of the filters. */
function isAbout(list, error) {
  const refused = error instanceof server.Refusal && [400, 422].includes(error.status);
  return list.length > 0 && refused && /filter/i.test(error.message);
}

/** Shows an error. `again` is called if trying again may help: after a while, or when somebody presses the button. */
function fail(error, again) {
  if (!current) grid.clear();
  summary("");
  const retry = { label: "Try now", act: () => again() };
  if (error instanceof server.Unreachable) {
    failures += 1;
    const wait = Math.min(LONGEST_WAIT, 2 ** failures);
    countdown("The server does not answer", "Is voken serve still running?", wait, retry);
  } else if (error instanceof server.Refusal && error.again !== null) {
    const title = error.status === 429 ? "Too many searches at once" : "The server is busy";
    countdown(title, error.message, error.again, retry);
  } else if (error instanceof server.Refusal) {
    notice("That did not work", error.message, error.status >= 500 ? retry : null);
  } else {
    throw error;
  }
  speak(`${byId("notice-title").textContent}. ${error.message}`);
}

/** A notice that counts down and then tries again. */
function countdown(title, text, seconds, action) {
  let left = seconds;
  clearTimeout(timers.again);
  const tick = () => {
    if (left === 0) return action.act();
    notice(title, `${text} Trying again in ${left} s.`, action);
    left -= 1;
    timers.again = setTimeout(tick, 1000);
    return null;
  };
  tick();
}

/** The notice above the pictures; `title` null hides it. */
function notice(title, text = "", action = null) {
  byId("notice").hidden = title === null;
  byId("notice-title").textContent = title ?? "";
  byId("notice-text").textContent = text;
  byId("notice-action").hidden = !action;
  byId("notice-action").textContent = action?.label ?? "";
  byId("notice-action").onclick = action?.act ?? null;
  byId("examples").hidden = true;
}

function summary(text) {
  byId("summary").textContent = text;
}

/** For screen readers, once typing pauses. */
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
  const hit = current.hits[place];
  if (push) {
    flush();
    newStep = true;
    history.pushState({ ...history.state, show: hit.id, opened: true }, "", href(hit.id));
  }
  viewer.open(current.hits, place, {
    query: current.request.query ?? "",
    total: collection.pictures,
    explain: explainer(current),
  });
}

/** Explanations of an answer, requested once, when the first is opened. */
function explainer(answer) {
  return async (hit) => {
    if (answer.request.query === undefined) return hit.why ?? null;
    answer.withWhys ??= server.search({ ...answer.request, why: true });
    try {
      const { results } = await answer.withWhys;
      const explained = results[0].hits.find((candidate) => candidate.id === hit.id);
      if (!explained) throw new Error("The collection has changed since. Search again.");
      return explained.why;
    } catch (error) {
      answer.withWhys = undefined;
      throw error;
    }
  };
}

/** The viewer was closed, by a button, a key or the Back button. */
function leave(place) {
  grid.focus(place);
  if (viewer.dialog.dataset.leaving) {
    delete viewer.dialog.dataset.leaving;
  } else if (new URLSearchParams(location.search).has("show")) {
    if (history.state?.opened) history.back();
    else history.replaceState({ ...history.state, show: undefined }, "", href());
  }
}

/** Open or close the viewer to match the address. */
function follow() {
  const id = history.state?.show ?? new URLSearchParams(location.search).get("show");
  if (id === null) return viewer.close();
  const place = current?.hits.findIndex((hit) => hit.id === id) ?? -1;
  if (place >= 0 && !viewer.isOpen) open(place, { push: false });
  return null;
}

/* ---- the address bar, and the history's state: ids may be file names that no address can hold ---- */

function href(viewed = null) {
  const address = new URLSearchParams();
  if (question.kind === "words" && question.text.trim()) address.set("q", question.text.trim());
  if (question.kind === "like") address.set("like", question.id);
  for (const filter of filters.list) address.append("filter", filter);
  if (filters.threshold) address.set("sure", String(filters.threshold));
  if (viewed !== null) address.set("show", viewed);
  const text = address.toString();
  return text ? `?${text}` : location.pathname;
}

function remember(push) {
  const state = { picture: question.number, like: question.id };
  const other = new URL(href(), location.href).href !== location.href || question.kind === "picture";
  if (push && other) history.pushState(state, "", href());
  else history.replaceState(state, "", href());
  updateTitle();
}

/** Ask the question in the address. */
function recall() {
  clearTimeout(timers.typing);
  timers.typing = 0;
  newStep = true;
  const address = new URLSearchParams(location.search);
  const number = history.state?.picture;
  if (files.has(number)) question = { kind: "picture", file: files.get(number), number };
  else if (address.has("like")) question = { kind: "like", id: history.state?.like ?? address.get("like") };
  else question = { kind: "words", text: address.get("q") ?? "" };
  const sure = Number(address.get("sure"));
  filters.set(address.getAll("filter"), sure > 0 && sure < 1 ? sure : null);
  drawQuestion();
  updateTitle();
  const body = request();
  if (current && keyOf(body) === current.key) return follow();
  page = 0;
  return run({ keepScroll: true });
}

function updateTitle() {
  const { kind, text: words, id, file } = question;
  const text = { words: words?.trim(), like: `like ${id}`, picture: file?.name }[kind];
  document.title = text ? `${text} – ${collection.name || "Pictures"}` : collection.name || "Pictures";
}

/* ---- the search box ---- */

query.addEventListener("input", () => {
  question = { kind: "words", text: query.value };
  page = 0;
  drawQuestion();
  clearTimeout(timers.typing);
  timers.typing = setTimeout(run, PAUSE);
});
query.addEventListener("blur", () => {
  if (timers.typing) run();
  newStep = true;
});
query.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && current?.hits.length) {
    event.preventDefault();
    grid.focus(0);
  } else if (event.key === "Escape" && !query.value) {
    query.blur();
  } else if (event.key === "Backspace" && !query.value && question.kind !== "words") {
    ask({ kind: "words", text: "" });
  }
});
byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  flush();
  newStep = true;
  if (current && keyOf(request()) === current.key) grid.focus(0);
  else run({ focus: true });
});
byId("clear").addEventListener("click", () => restart());
byId("like-clear").addEventListener("click", () => restart());

function restart() {
  ask({ kind: "words", text: "" });
  query.focus();
}

/** Put what was typed into the history at once, without waiting for a pause. */
function flush() {
  if (!timers.typing) return;
  clearTimeout(timers.typing);
  timers.typing = 0;
  remember(newStep);
  newStep = false;
}

function drawQuestion() {
  if (question.kind === "words" && query.value !== question.text) query.value = question.text;
  if (question.kind !== "words") query.value = "";
  byId("clear").hidden = !query.value;
  byId("like").hidden = question.kind === "words";
  query.placeholder = question.kind === "words" ? "What does the picture show?" : "or describe it in words";
  if (question.kind === "like") {
    const hit = examples.get(question.id);
    byId("like-name").textContent = `Like ${hit ? caption(hit) : question.id}`;
    draw(pictureOf(hit, question.id));
  } else if (question.kind === "picture") {
    byId("like-name").textContent = `Like ${question.file.name || "your picture"}`;
    draw(createImageBitmap(question.file));
  }
}

async function pictureOf(hit, id) {
  const image = new Image();
  image.src = hit ? server.thumbnail(hit, 256) : `${server.address(id)}?thumbnail=256`;
  await image.decode();
  return image;
}

/** Draw the middle of a picture in the search box. */
async function draw(loading) {
  const canvas = byId("like-picture");
  const pen = canvas.getContext("2d");
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const subject = question;
  try {
    const picture = await loading;
    if (question !== subject) return;
    const [width, height] = [picture.naturalWidth ?? picture.width, picture.naturalHeight ?? picture.height];
    const side = Math.min(width, height);
    pen.drawImage(picture, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
  } catch {
    // a format that this browser cannot show; the server may be able to read it
  }
}

/* ---- searching by picture ---- */

function searchWith(file) {
  const number = files.size + 1;
  files.set(number, file);
  viewer.dialog.dataset.leaving = "true";
  viewer.close();
  delete viewer.dialog.dataset.leaving;
  ask({ kind: "picture", file, number });
}

/** Use files that were chosen, dropped or pasted: to add, if that panel is open, or to search. */
function take(list) {
  const chosen = [...list];
  if (!chosen.length) return false;
  if (add.isOpen) add.take(chosen);
  else if (collection.can_encode) searchWith(chosen[0]);
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

let fromHere = false; // a picture dragged from this page also comes with a file
addEventListener("dragstart", () => (fromHere = true));
addEventListener("dragend", () => (fromHere = false));
const hasFiles = (event) => !fromHere && (event.dataTransfer?.types.includes("Files") ?? false);
let depth = 0; // dragenter and dragleave are sent for every element on the way
function dragging(by) {
  depth = Math.max(0, depth + by);
  byId("drop").hidden = depth === 0 || add.isOpen || !collection.can_encode;
}
addEventListener("dragenter", (event) => {
  if (hasFiles(event)) dragging(1);
});
addEventListener("dragleave", (event) => {
  if (hasFiles(event)) dragging(-1);
});
addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault(); // or the browser would open the file in place of the page
});
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragging(-depth);
  take(event.dataTransfer.files);
});

/* ---- the rest ---- */

byId("more").addEventListener("click", async () => {
  const first = current.hits.length;
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
  collection = await server.about();
  byId("name").textContent = collection.name;
  byId("size").textContent = pictures(collection.pictures);
  byId("by-picture").hidden = !collection.can_encode;
  byId("add-open").hidden = !collection.uploads;
  filters.offer(collection);
  byId("examples").replaceChildren(
    ...collection.examples.map((text) => {
      const button = element("button", { type: "button", class: "chip" }, text);
      button.addEventListener("click", () => ask({ kind: "words", text }));
      return element("li", null, button);
    }),
  );
  updateTitle();
}

async function begin() {
  try {
    await refresh();
  } catch (error) {
    // if there is a question, its own answer reports the same
    if (!request()) fail(error, begin);
    return;
  }
  failures = 0;
  if (!collection.calibrated) filters.set(filters.list, null);
  if (!request()) idle();
  else if (filters.threshold) run();
}

recall();
begin();
if (matchMedia("(hover: hover)").matches) query.focus();
