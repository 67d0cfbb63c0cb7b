// How well an image fits a text, in words.

import { percent } from "/static/parts.js";

/** Words for how well a hit fits, their class for colours, and the figure; null if it is not known. */
export function matchOf(hit) {
  if (!hit.match) return null;
  return { words: `${hit.match} match`, level: hit.match, share: percent(hit.probability) };
}

const HEADINGS = { good: "Good matches", possible: "Possible matches", weak: "Weak matches" };

/** The heading of the images that match as well as a hit, where another one stands above them. */
export function matchHeading(hit, before) {
  if (hit.match) return HEADINGS[hit.match];
  return before ? "Not ranked" : "";
}
