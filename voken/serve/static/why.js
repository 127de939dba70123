/* "Why this?": the vokens of one hit, and how the beam search reached them, from the server's explanation. */

import { element } from "./element.js";
import { count, decimals, ordinal, percent, pictures } from "./words.js";

const EMPTY_BAR = 7; // an empty bar means a log-probability of −7, about that of a guess among 1,024 entries

/** `why` is from POST /search, `total` the number of pictures in the collection, `place` the hit's place from 0. */
export function explanation(hit, why, { query, total, place }) {
  return [
    element("p", null, first(hit, why, query, total)),
    element("p", null, second(why, place)),
    levels(why, total),
    totals(why),
  ];
}

function first(hit, why, query, total) {
  const left = why.levels.at(-1)?.pictures ?? total;
  const subject = query ? `From “${query}” the model` : "The model";
  return (
    `${subject} wrote ${count(why.levels.length)} vokens, one after the other. ` +
    `Each narrows the choice, here from ${pictures(total)} to ${left === 1 ? "this one" : count(left)}.`
  );
}

function second(why, place) {
  const cosine = why.cosine === null ? "" : `the picture’s similarity to the query (cosine ${decimals(why.cosine, 2)})`;
  if (why.beam_rank === null) {
    return `No beam ended here${cosine ? `; ${cosine} brought it to place ${place + 1}` : ""}.`;
  }
  const rank = `Of the sequences that the beams completed, this was the ${likeliest(why.beam_rank)}`;
  return cosine ? `${rank}. Together with ${cosine}, it is in place ${place + 1}.` : `${rank}.`;
}

const likeliest = (rank) => (rank === 1 ? "likeliest" : `${ordinal(rank)} likeliest`);

function levels(why, total) {
  const least = Math.max(EMPTY_BAR, ...why.levels.map((level) => -level.log_prob));
  const rows = why.levels.map((level, at) =>
    element(
      "tr",
      null,
      element("th", { scope: "row", class: "voken" }, voken(level.voken, at)),
      element(
        "td",
        { class: "likely" },
        bar(1 + level.log_prob / least),
        number(level.log_prob, decimals(level.log_prob, 2)),
        element("span", { class: "soft" }, ` ${percent(Math.exp(level.log_prob))}`),
      ),
      element("td", { class: "rank" }, number(level.rank, ordinal(level.rank))),
      element(
        "td",
        { class: "left" },
        bar(Math.log1p(level.pictures) / Math.log1p(Math.max(total, level.pictures, 1))),
        number(level.pictures, count(level.pictures)),
      ),
    ),
  );
  return element(
    "table",
    { class: "levels" },
    element("caption", { class: "unseen" }, "The vokens, level by level"),
    element(
      "thead",
      null,
      element(
        "tr",
        null,
        ...["Voken", "Log-probability", "Rank", "Pictures left"].map((title) => element("th", { scope: "col" }, title)),
      ),
    ),
    element("tbody", null, ...rows),
  );
}

function totals(why) {
  const rows = [
    ["Log-probability", number(why.log_prob, decimals(why.log_prob, 3))],
    ["Beam rank", why.beam_rank === null ? "none" : number(why.beam_rank, ordinal(why.beam_rank))],
    ["Cosine", why.cosine === null ? "not used" : number(why.cosine, decimals(why.cosine, 3))],
  ];
  return element(
    "dl",
    { class: "totals" },
    ...rows.map(([name, value]) => element("div", null, element("dt", null, name), element("dd", null, value))),
  );
}

/** A voken. Equal numbers at one level have the same colour. */
export function voken(number_, level) {
  const chip = element("span", { class: "chip-voken" }, String(number_));
  // the golden angle puts neighbouring numbers far apart on the colour wheel
  chip.style.setProperty("--hue", String(Math.round(number_ * 137.508 + level * 47) % 360));
  return chip;
}

function bar(share) {
  const filled = element("i");
  filled.style.inlineSize = `${100 * Math.min(1, Math.max(0, share))}%`;
  return element("span", { class: "meter", "aria-hidden": "true" }, filled);
}

/** A rounded number; the attribute `value` has the exact one. */
const number = (exact, shown) => element("data", { value: exact }, shown);
