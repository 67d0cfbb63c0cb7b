// Filters as they are typed, `field=value`, and as the service takes them.

/** Return [field, value] of a filter as it is typed; null if it is none. */
export function readFilter(text) {
  const [, field, value] = /^\s*([^=\s][^=]*?)\s*=\s*(.+?)\s*$/.exec(text) || [];
  if (field === undefined) return null;
  if (value === "true" || value === "false") return [field, value === "true"];
  if (!/^-?(0|[1-9]\d{0,18})$/.test(value)) return [field, value];
  return [field, Number.isSafeInteger(Number(value)) ? Number(value) : BigInt(value)];
}

/** Return the service's filter for a list of typed ones; null for none. */
export function filterBody(texts) {
  const read = texts.map(readFilter).filter(Boolean);
  if (!read.length) return null;
  const body = {};
  for (const [field, value] of read) (body[field] ||= []).push(value);
  return body;
}
