// Texts to try on a collection.

import { get } from "/static/service.js";

/** Return texts that are said of the collection's own images; none if their payloads hold none. */
export async function suggestions(signal) {
  try {
    return (await get("/v1/suggestions", { signal })).texts;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return []; // the page works without
  }
}
