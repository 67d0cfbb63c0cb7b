// Texts to try on a collection.

const OF_DEMO = ["a red star above a blue ring", "a huge black star on the left of a white moon", "a little red heart"];

/** Return texts that the collection can answer; `info` describes the service. */
export function suggestions(info) {
  return info.model === "demo" ? OF_DEMO : [];
}
