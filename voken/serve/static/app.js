/* The page: it asks the server the current question, shows the answer, and keeps the address bar up to date. */

import { Add } from "./add.js";
import { byId, element } from "./element.js";
import { Filters } from "./filters.js";
import { Folders } from "./folders.js";
import { CollectionList, HitList, SingleList } from "./lists.js";
import { Mosaic } from "./mosaic.js";
import { Selection } from "./selection.js";
import * as server from "./server.js";
import { Timeline } from "./timeline.js";
import { Viewer } from "./viewer.js";
import { caption, duration, percent, pictures } from "./words.js";

const TYPING_PAUSE = 150; // ms without a key before a search
const SLOW_SEARCH = 200; // ms before the page shows that a search is running
const SPEECH_PAUSE = 600; // ms without changes before a screen reader reads the state
const PAGE_SIZES = [60, 120, 200]; // pictures per answer; the last is the server's limit
const LONGEST_WAIT = 30; // s between requests to a server that does not answer

/* The question: {kind: "words", text}, {kind: "like", id} or {kind: "picture", file, number}. */
let question = { kind: "words", text: "" };
let page = 0; // index into PAGE_SIZES
/* What is on the screen: {key, list} of the collection, or {key, list, request} of an answer. */
let current = null;
/* The response to GET /about. */
let collection = { name: "", pictures: 0, version: null, calibrated: false, can_encode: false };
let controller = null; // aborts the running request
let failures = 0; // how often in a row the server was unreachable
let newStep = true; // whether the next typed query is a new entry of the history
const files = new Map(); // number → file of a search by picture, for the Back button
let suggested = { version: null, texts: [] }; // queries to suggest
const examples = new Map(); // id → hit whose similar pictures were searched, for its caption
const timers = { typing: 0, retry: 0, speech: 0 };

const query = byId("query");
const selection = new Selection(() => grid.drawSelection());
const grid = new Mosaic(byId("grid"), selection, { open: (place) => open(place), failed: (error) => loadFailed(error) });
const timeline = new Timeline(grid);
const folders = new Folders((filter) => showFolder(filter));
const filters = new Filters(() => change());
const add = new Add(() => refresh().then(() => run()));
const viewer = new Viewer({
  moved: (hit, place) => history.replaceState({ ...history.state, show: hit.id, place }, "", href(hit.id)),
  closed: viewerClosed,
  similar: (hit) => {
    // the address of the open picture stays in the history, so that Back returns to it
    viewer.dialog.dataset.leaving = "true";
    viewer.close();
    examples.set(hit.id, hit);
    ask({ kind: "like", id: hit.id });
  },
  folder: (filter) => {
    viewer.dialog.dataset.leaving = "true";
    viewer.close();
    showFolder(filter);
  },
  failed: (error) => loadFailed(error),
});

/* ---- asking ---- */

function request() {
  const threshold = collection.calibrated ? filters.threshold : null;
  const common = { k: PAGE_SIZES[page], filters: [...filters.list], threshold, layout: true };
  if (question.kind === "words") {
    const text = question.text.trim();
    return text ? { ...common, query: text } : null;
  }
  if (question.kind === "like") return { ...common, like: question.id };
  return { ...common, file: question.file, number: question.number };
}

/** Equal for equal questions, however many pictures of the answer are requested. */
function keyOf(body) {
  return JSON.stringify(body ? { ...body, file: undefined, k: undefined } : { collection: filters.list });
}

/** Ask a new question. `push`: as a new entry of the history. */
function ask(next, { push = true } = {}) {
  question = next;
  page = 0;
  drawQuestion();
  updateAddress(push);
  return run();
}

/** Show a folder of the collection, or all of it; words that were searched are searched there. */
function showFolder(filter) {
  const others = filters.list.filter((other) => !other.startsWith("folder="));
  filters.set(filter ? [...others, filter] : others, filters.threshold);
  change();
}

/** The filters changed. */
function change() {
  page = 0;
  newStep = true;
  updateAddress(true);
  run();
}

async function run({ focus = false, keepScroll = false } = {}) {
  clearTimeout(timers.retry);
  finishTyping();
  controller?.abort();
  const thisRun = (controller = new AbortController());
  const body = request();
  working(false);
  folders.mark(filters.list);
  const slow = setTimeout(() => {
    if (controller !== thisRun) return;
    working(true);
    if (!current) grid.wait(24);
  }, SLOW_SEARCH);
  try {
    const answer = await (body ? answerTo(body, thisRun.signal) : server.timeline(filters.list, thisRun.signal));
    if (controller !== thisRun) return; // a newer question has been asked meanwhile
    failures = 0;
    if (body) {
      showAnswer(body, answer, { keepScroll });
    } else {
      const list = new CollectionList(answer, [...filters.list], () => run({ keepScroll: true }));
      if (list.length) await list.load(0);
      if (controller !== thisRun) return;
      showCollection(list, { keepScroll });
    }
    if (focus) grid.focus(0);
  } catch (error) {
    if (controller !== thisRun) return;
    if (isAbout(filters.list, error)) {
      filters.showError(error.message);
      notice(null);
      if (!current) grid.clear();
    } else {
      showError(error, run);
    }
  } finally {
    clearTimeout(slow);
    if (controller === thisRun) working(false);
  }
}

const answerTo = (body, signal) =>
  body.file ? server.searchPicture(body.file, body, signal) : server.search({ ...body, why: false }, signal);

/* ---- answers ---- */

function showAnswer(body, answer, { keepScroll }) {
  const { hits, no_match: unlikely } = answer.results[0];
  const noMatch = hits.length > 0 && unlikely;
  const list = new HitList(hits);
  current = { ...shown(keyOf(body), list, keepScroll), request: body };
  filters.measured(hits.map((hit) => hit.confidence));
  const counts = `${pictures(hits.length)} · ${duration(answer.seconds)}`;
  summary(hits.length ? counts : "");
  byId("more").hidden = hits.length < PAGE_SIZES[page] || page === PAGE_SIZES.length - 1;
  byId("thumb-search").hidden = !hits.length;
  if (!hits.length && body.threshold !== null) {
    // what was asked to be hidden stays hidden
    notice(
      `No picture with ${percent(body.threshold)} confidence`,
      "Less confident pictures are hidden, as you asked.",
      { label: "Show them", act: () => { filters.set(filters.list, null); change(); } },
    );
  } else if (!hits.length) {
    const filtered = body.filters.length > 0;
    notice(
      filtered ? "No picture passes these filters" : "No pictures found",
      filtered ? "Remove a filter, or search for something else." : "Try other words.",
      filtered ? removeFilters : null,
    );
  } else if (noMatch) {
    notice("Nothing matches well", hits.length === 1 ? "This is the nearest." : "These are the nearest.");
  } else {
    notice(null);
  }
  const verdict = noMatch ? "Nothing matches well. Nearest: " : "";
  speak(hits.length ? verdict + counts : byId("notice-title").textContent);
  if (answer.version !== collection.version) refresh().catch(() => {});
  matchViewer();
}

const removeFilters = { label: "Remove all filters", act: () => { filters.set([], null); change(); } };

/** Show the collection, or what passes the filters of it: there is no question. */
function showCollection(list, { keepScroll }) {
  current = shown(keyOf(null), list, keepScroll);
  filters.measured([]);
  byId("more").hidden = true;
  byId("thumb-search").hidden = !list.length;
  const isFiltered = list.filters.length > 0;
  const counts = pictures(list.length);
  summary(isFiltered ? counts : "");
  if (!list.length && isFiltered) notice("No picture passes these filters", "Remove a filter.", removeFilters);
  else if (!list.length) notice("No pictures yet", "Index a folder of pictures, or add some here.");
  else notice(null);
  suggest();
  speak(isFiltered ? counts : "");
  if (list.version !== collection.version) refresh().catch(() => {});
  matchViewer();
}

/** Put a list on the screen, and remember it. */
function shown(key, list, keepScroll) {
  const isNew = key !== current?.key;
  filters.accept();
  timeline.show(list.months ?? []); // first, because it takes some of the width
  grid.show(list);
  if (!(list instanceof CollectionList) || list.filters.length) byId("suggestions").hidden = true;
  if (isNew && !keepScroll) window.scrollTo({ top: 0 });
  return { key, list };
}

/** Suggest queries, if the whole collection is on the screen. The server takes seconds to choose the first ones. */
async function suggest() {
  const { version } = collection;
  const fits = () => request() === null && filters.list.length === 0;
  byId("suggestions").hidden = !fits() || !(current?.list.length);
  try {
    if (suggested.version !== version) {
      const { examples: texts } = await server.examples();
      suggested = { version, texts };
      byId("examples").replaceChildren(...texts.map((text) => {
        const button = element("button", { type: "button", class: "chip" }, text);
        button.addEventListener("click", () => ask({ kind: "words", text }));
        return element("li", null, button);
      }));
    }
  } catch {
    suggested = { version: null, texts: [] }; // what is wrong shows elsewhere
  }
  byId("suggestions").hidden = !suggested.texts.length || !fits();
}

/** Whether an error is about one of the filters in `list`. */
function isAbout(list, error) {
  const refused = error instanceof server.Refusal && [400, 422].includes(error.status);
  return list.length > 0 && refused && /filter/i.test(error.message);
}

/** Show an error. If a retry may help, `retry` is called after a while or when the button is pressed. */
function showError(error, retry) {
  if (!current) grid.clear();
  summary("");
  const action = { label: "Try now", act: () => retry() };
  if (error instanceof server.Unreachable) {
    failures += 1;
    const wait = Math.min(LONGEST_WAIT, 2 ** failures);
    countdown("The server does not answer", "Is voken serve still running?", wait, action);
  } else if (error instanceof server.Refusal && error.retryAfter !== null) {
    const title = error.status === 429 ? "Too many searches at once" : "The server is busy";
    countdown(title, error.message, error.retryAfter, action);
  } else if (error instanceof server.Refusal) {
    notice("That did not work", error.message, error.status >= 500 ? action : null);
  } else {
    throw error;
  }
  speak(`${byId("notice-title").textContent}. ${error.message}`);
}

/** Some pictures of the list on the screen could not be loaded. */
function loadFailed(error) {
  if (error.name === "AbortError") return;
  showError(error, () => run({ keepScroll: true }));
}

/** Show a notice that counts down, then call `action.act`. */
function countdown(title, text, seconds, action) {
  let left = seconds;
  clearTimeout(timers.retry);
  const tick = () => {
    if (left === 0) return action.act();
    notice(title, `${text} Trying again in ${left} s.`, action);
    left -= 1;
    timers.retry = setTimeout(tick, 1000);
    return null;
  };
  tick();
}

/** Show a notice above the pictures, or hide it if `title` is null. */
function notice(title, text = "", action = null) {
  byId("notice").hidden = title === null;
  byId("notice-title").textContent = title ?? "";
  byId("notice-text").textContent = text;
  byId("notice-action").hidden = !action;
  byId("notice-action").textContent = action?.label ?? "";
  byId("notice-action").onclick = action?.act ?? null;
}

function summary(text) {
  byId("summary").textContent = text;
}

/** Let screen readers read `text` once typing pauses. */
function speak(text) {
  clearTimeout(timers.speech);
  timers.speech = setTimeout(() => {
    byId("state").textContent = text;
  }, SPEECH_PAUSE);
}

function working(now) {
  byId("working").classList.toggle("on", now);
  byId("grid").setAttribute("aria-busy", String(now));
}

/* ---- the open picture ---- */

function open(place, { push = true, list = current.list } = {}) {
  const picture = list.at(place);
  if (push) {
    finishTyping();
    newStep = true;
    history.pushState({ ...history.state, show: picture.id, place, opened: true }, "", href(picture.id));
  }
  viewer.open(list, place, {
    query: current.request?.query ?? "",
    total: collection.pictures,
    explain: current.request && list === current.list ? explainer(current) : null,
  });
}

/** A function that explains a hit of `answer`. The explanations are requested when the first is opened. */
function explainer(answer) {
  return async (hit) => {
    if (answer.request.query === undefined) return hit.why ?? null;
    answer.withWhys ??= server.search({ ...answer.request, why: true });
    try {
      const { results } = await answer.withWhys;
      const explained = results[0].hits.find((candidate) => candidate.id === hit.id);
      if (!explained) throw new Error("The collection has changed meanwhile. Search again.");
      return explained.why;
    } catch (error) {
      answer.withWhys = undefined;
      throw error;
    }
  };
}

/** Update the address after the viewer was closed, by a button, a key or the Back button. */
function viewerClosed(place) {
  if (current?.list === viewer.list) grid.focus(place, { scroll: true });
  if (viewer.dialog.dataset.leaving) {
    delete viewer.dialog.dataset.leaving;
  } else if (new URLSearchParams(location.search).has("show")) {
    if (history.state?.opened) history.back();
    else history.replaceState({ ...history.state, show: undefined }, "", href());
  }
}

/** Open or close the viewer to match the address. */
async function matchViewer() {
  const id = history.state?.show ?? new URLSearchParams(location.search).get("show");
  if (id === null) return viewer.close();
  if (viewer.isOpen || !current) return null;
  const { list } = current;
  const remembered = history.state?.place;
  if (list.placeOf(id) < 0 && list instanceof CollectionList) {
    try {
      if (remembered < list.length) await list.load(remembered);
      if (list.placeOf(id) < 0) {
        const picture = await server.details({ id });
        if (current.list === list && !viewer.isOpen) open(0, { push: false, list: new SingleList(picture) });
        return null;
      }
    } catch {
      return null; // it is no longer there
    }
  }
  const place = list.placeOf(id);
  if (place >= 0 && current.list === list && !viewer.isOpen) open(place, { push: false });
  return null;
}

/* ---- the address bar, and the history's state, because an address cannot hold every id ---- */

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

function updateAddress(push) {
  const state = { picture: question.number, like: question.id };
  const other = new URL(href(), location.href).href !== location.href || question.kind === "picture";
  if (push && other) history.pushState(state, "", href());
  else history.replaceState(state, "", href());
  updateTitle();
}

/** Ask the question in the address. */
function askFromAddress() {
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
  if (current && keyOf(request()) === current.key) return matchViewer();
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
  timers.typing = setTimeout(run, TYPING_PAUSE);
});
query.addEventListener("blur", () => {
  if (timers.typing) run();
  newStep = true;
});
query.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && current?.list.length) {
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
  finishTyping();
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

/** Put the typed query into the history now, without waiting for a pause. */
function finishTyping() {
  if (!timers.typing) return;
  clearTimeout(timers.typing);
  timers.typing = 0;
  updateAddress(newStep);
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

/** Use files that were chosen, dropped or pasted: add them if that panel is open, else search by the first. */
function useFiles(list) {
  const chosen = [...list];
  if (!chosen.length) return false;
  if (add.isOpen) add.choose(chosen);
  else if (collection.can_encode) searchWith(chosen[0]);
  else return false;
  return true;
}

byId("by-picture").addEventListener("click", () => byId("picture-file").click());
byId("picture-file").addEventListener("change", (event) => {
  useFiles(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  if (useFiles(event.clipboardData?.files ?? [])) event.preventDefault();
});

let internalDrag = false; // a picture that is dragged from this page also counts as a file
addEventListener("dragstart", () => (internalDrag = true));
addEventListener("dragend", () => (internalDrag = false));
const hasFiles = (event) => !internalDrag && (event.dataTransfer?.types.includes("Files") ?? false);
let depth = 0; // dragenter and dragleave are sent for every element that the pointer crosses
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
  if (hasFiles(event)) event.preventDefault(); // otherwise the browser opens the file instead of the page
});
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragging(-depth);
  useFiles(event.dataTransfer.files);
});

/* ---- the rest ---- */

byId("more").addEventListener("click", async () => {
  const first = current.list.length;
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
addEventListener("popstate", () => askFromAddress());
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
  } else if (event.key === "Escape" && selection.active) {
    selection.clear();
    selection.changed();
  }
});

async function refresh() {
  collection = await server.about();
  byId("name").textContent = collection.name;
  byId("size").textContent = pictures(collection.pictures);
  byId("by-picture").hidden = !collection.can_encode;
  byId("add-open").hidden = !collection.uploads;
  filters.offer(collection);
  folders.offer(collection.version, collection.pictures).catch(() => {});
  updateTitle();
}

async function start() {
  try {
    await refresh();
  } catch {
    return; // the first question reports the same error
  }
  if (!collection.calibrated) filters.set(filters.list, null);
  else if (filters.threshold) run();
  if (current && !request()) suggest();
}

askFromAddress();
start();
if (matchMedia("(hover: hover)").matches) query.focus();
