/* Turns numbers, filters and pictures into words. */

const whole = new Intl.NumberFormat("en");
const CAPTIONS = ["caption", "captions", "title", "description", "alt", "concept", "name"];
const SIGNS = { "=": "is", "!=": "is not", "~": "contains", "<=": "≤", ">=": "≥", "<": "<", ">": ">" };

export const count = (number) => whole.format(number);
export const pictures = (number) => `${count(number)} ${number === 1 ? "picture" : "pictures"}`;
const months = new Intl.DateTimeFormat("en", { month: "long", year: "numeric", timeZone: "UTC" });
const moments = new Intl.DateTimeFormat("en", { dateStyle: "full", timeStyle: "short", timeZone: "UTC" });

/** "2024-05" becomes "May 2024". */
export const month = (text) => months.format(new Date(`${text}-01T00:00:00Z`));

/** "2024-05-03T10:11:12", the time on a clock, becomes "Friday, May 3, 2024 at 10:11 AM". */
export const moment = (text) => moments.format(new Date(`${text}Z`));

/** A number of bytes, for example "2.4 MB". */
export function bytes(number) {
  const units = ["bytes", "kB", "MB", "GB"];
  let [value, unit] = [number, 0];
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** A filter's value, in quotes if it would else be read as something else. */
export const quoted = (text) => (/^[=<>~!"\s]|[\s"]$|^$/.test(text) ? `"${text}"` : text);

export const decimals = (number, places) => number.toFixed(places).replace("-", "−");

/** A probability as a percentage. Only 0 and 1 become 0% and 100%. */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "<0.1%";
  if (value < 10) return `${value.toFixed(1)}%`;
  if (value < 100 && value > 99) return `${(Math.floor(value * 10) / 10).toFixed(1)}%`;
  return `${Math.round(value)}%`;
}

export function duration(seconds) {
  if (seconds >= 0.9995) return `${seconds.toFixed(1)} s`;
  return `${(1000 * seconds).toFixed(seconds < 0.00995 ? 1 : 0)} ms`;
}

export function ordinal(number) {
  const tens = number % 100;
  const ending = tens > 10 && tens < 14 ? "th" : (["th", "st", "nd", "rd"][number % 10] ?? "th");
  return `${count(number)}${ending}`;
}

/** A picture's caption from its metadata, or the name of its file if there is none. */
export function caption(hit) {
  for (const name of CAPTIONS) {
    const value = hit.metadata?.[name];
    const text = Array.isArray(value) ? value.find((item) => typeof item === "string" && item.trim()) : value;
    if (typeof text === "string" && text.trim()) return text.trim();
  }
  return hit.id.replace(/\/+$/, "").split("/").at(-1) || hit.id;
}

/** A metadata value as text. */
export function value(data) {
  if (Array.isArray(data) && data.every((item) => typeof item === "string")) return data.join(" · ");
  return typeof data === "string" ? data : JSON.stringify(data);
}

const FILTER = /^\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*$/s;

/** A filter for reading: "date>=2024-05" becomes "date ≥ 2024-05". */
export function filter(text) {
  const [, field, operator, operand] = FILTER.exec(text) ?? [];
  return field ? `${field} ${SIGNS[operator]} ${operand}` : text;
}

/** The field and the value of a filter; null if the text is not a filter. */
export function parts(text) {
  const [, field, , operand] = FILTER.exec(text) ?? [];
  return field ? [field, operand] : null;
}
