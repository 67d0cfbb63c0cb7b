// What the model of the collection cannot do.

import { make } from "/static/parts.js";

/** Say it above the results; `info` describes the service. */
export function showModelNote(place, info) {
  const note = info.model_note;
  place.hidden = !note;
  if (!note) return;
  const said = note.charAt(0).toUpperCase() + note.slice(1);
  const option = make("code", {}, "--model");
  place.replaceChildren(make("b", {}, `${said}.`), " Its results for photographs mean nothing. To search photographs, ingest them with another model: ", option, ".");
}
