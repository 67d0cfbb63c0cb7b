// How well an image fits a text, in words.

import { percent } from "/static/parts.js";

/** Words for how well a hit fits, and their class for colours; null if it is not known. */
export function matchOf(hit) {
  if (typeof hit.probability !== "number") return null;
  const level = hit.probability >= 0.5 ? "good" : "weak";
  return { words: `${percent(hit.probability)} match`, level };
}
