// Conditions of a filter as they are typed. The service reads them; here they are only taken apart.

const FORM = /^\s*([^=<>~]+?)\s*(>=|<=|=|>|<|~)\s*([^]*?)\s*$/;
const SIGNS = { ">=": "≥", "<=": "≤", "~": "near", "=": "" };

/** Return {field, sign, value} of a condition; null if it has not the form of one. */
export function readFilter(text) {
  const [, field, sign, value] = FORM.exec(text) || [];
  return value ? { field, sign, value } : null;
}

/** Return a condition's field and its comparison in words. */
export function filterWords(text) {
  const read = readFilter(text);
  if (!read) return [text, ""];
  const value = /^"[^"\\]*"$/.test(read.value) ? read.value.slice(1, -1) : read.value;
  return [read.field, `${SIGNS[read.sign] ?? read.sign} ${value}`.trim()];
}

/** Return a condition that a field has a value; a text that would be read as another type is quoted. */
export function equals(field, value) {
  if (typeof value !== "string") return `${field}=${value}`;
  try {
    JSON.parse(value);
  } catch {
    if (value === value.trim()) return `${field}=${value}`;
  }
  return `${field}=${JSON.stringify(value)}`;
}
