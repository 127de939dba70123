/* Arranges pictures in rows of equal height that fill the width, in their own proportions. It knows only numbers. */

const MOST_IN_A_ROW = 24;
const [NARROWEST, WIDEST] = [0.45, 3]; // of a picture; beyond them it is cropped

/** A picture's proportion, width by height, as far as rows can take it. Unknown sizes give a square. */
export const proportion = ({ width, height } = {}) =>
  width && height ? Math.min(WIDEST, Math.max(NARROWEST, width / height)) : 1;

/**
 * Boxes {x, y, width, height} for pictures of these proportions, and the height of all rows together. The breaks
 * between rows are chosen so that the rows' heights are as near to `target` as they can be, all rows together. Unless
 * `full`, the last row may end before the right edge.
 */
export function justify(proportions, { width, target, gap, full }) {
  const breaks = chooseBreaks(proportions, { width, target, gap, full });
  const boxes = [];
  let y = 0;
  for (const [start, end] of breaks) {
    const isShort = end === proportions.length && !full;
    const natural = rowHeight(proportions, start, end, width, gap);
    // a short last row is as high as the one above it
    const height = Math.round(isShort ? Math.min(natural, boxes.at(-1)?.height ?? target) : natural);
    let x = 0;
    for (let at = start; at < end; at += 1) {
      const last = at === end - 1 && height === Math.round(natural);
      const wide = last ? Math.max(1, width - x) : Math.round(proportions[at] * height);
      boxes.push({ x, y, width: Math.min(wide, width), height });
      x += wide + gap;
    }
    y += height + gap;
  }
  return { boxes, height: Math.max(0, y - gap) };
}

/** The height at which the pictures from `start` to `end` fill the width. */
function rowHeight(proportions, start, end, width, gap) {
  let sum = 0;
  for (let at = start; at < end; at += 1) sum += proportions[at];
  return Math.max(1, (width - gap * (end - start - 1)) / sum);
}

/** Pairs [start, end] of the rows with the least cost, found from the first row to the last. */
function chooseBreaks(proportions, { width, target, gap, full }) {
  const count = proportions.length;
  const best = [{ cost: 0, start: -1 }];
  for (let end = 1; end <= count; end += 1) {
    best[end] = { cost: Infinity, start: end - 1 };
    let sum = 0;
    for (let start = end - 1; start >= Math.max(0, end - MOST_IN_A_ROW); start -= 1) {
      sum += proportions[start];
      const height = Math.max(1, (width - gap * (end - start - 1)) / sum);
      const off = Math.log(height / target);
      const isFree = end === count && !full && off > 0;
      const cost = best[start].cost + (isFree ? 0.01 : off * off);
      if (cost < best[end].cost) best[end] = { cost, start };
      if (off < -1) break; // more pictures only make the row lower
    }
  }
  const rows = [];
  for (let end = count; end > 0; end = best[end].start) rows.unshift([best[end].start, end]);
  return rows;
}

/** The height that `count` pictures of unknown proportions will take, about. */
export function estimate(count, { width, target, gap }) {
  const perRow = Math.max(1, (width + gap) / (1.35 * target + gap));
  const rows = Math.ceil(count / perRow);
  return rows * target + (rows - 1) * gap;
}
