// Details of one image: scores, payload, and a heat map for each word.

import { drawHeat } from "/static/heat.js";
import { matchOf } from "/static/match.js";
import { altOf, dateWords, decimal, make, momentOf, nameOf, partOf, placeOf } from "/static/parts.js";
import { encode, hasKey, post, show } from "/static/service.js";

const at = (id) => document.getElementById(id);
// Words whose weight is nearer to 0 than this (nats) say nothing of the match.
const TELLING = 0.5;

export class Detail {
  /**
   * `text()` returns the search text; `figures()` whether scores are shown as numbers, too;
   * `explains()` whether the service can explain; `shut()` closes the image, `step(by)` opens the next
   * one or the one before, `like(picture)` searches.
   */
  constructor({ text, figures, explains, shut, step, like }) {
    this.dialog = at("detail");
    this.text = text;
    this.figures = figures;
    this.explains = explains;
    this.picture = null;
    at("close").addEventListener("click", shut);
    at("like").addEventListener("click", () => like(this.picture));
    at("before").addEventListener("click", () => step(-1));
    at("after").addEventListener("click", () => step(1));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) shut();
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") step(1);
      else if (event.key === "ArrowLeft") step(-1);
    });
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault(); // it closes once the address has changed
      shut();
    });
    this.dialog.addEventListener("close", () => {
      this.picture = null;
      this.running?.abort();
      shut(); // the browser has closed it by itself
    });
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }

  /** Show an image; `first` and `last` say whether there is none before it or after it. */
  open(picture, { first, last }) {
    at("before").disabled = first;
    at("after").disabled = last;
    if (this.dialog.open && this.picture?.image_id === picture.image_id) return;
    this.picture = picture;
    this.running?.abort();
    at("detail-title").textContent = nameOf(picture);
    const file = `/v1/images/${encodeURIComponent(picture.image_id)}/file`;
    const large = at("large");
    large.alt = altOf(picture);
    const shown = (is) => {
      large.hidden = !is;
      at("unshown").hidden = is;
      at("original").hidden = !is || hasKey(); // a plain link cannot send the key
    };
    shown(true);
    large.onerror = () => shown(false);
    large.onload = () => fit(large);
    large.removeAttribute("src"); // not the one before, while this one loads
    const { width, height } = picture.payload;
    if (width > 0 && height > 0) fit({ naturalWidth: Number(width), naturalHeight: Number(height) });
    show(large, file);
    const part = partOf(picture);
    at("original").href = part ? part.href : file;
    at("original").textContent = part ? part.open : "Open the picture";
    at("heat").hidden = true;
    at("whence").replaceChildren(...whence(picture));
    at("scores").replaceChildren(...scores(picture, this.figures()));
    const { payload } = picture;
    const lines = Object.entries(payload).flatMap(([field, value]) => [
      make("dt", {}, field),
      make("dd", {}, ...breakable(typeof value === "string" ? value : encode(value))),
    ]);
    at("payload").replaceChildren(...lines, make("dt", {}, "id"), make("dd", {}, picture.image_id));
    if (!this.dialog.open) this.dialog.showModal();
    for (const part of this.dialog.querySelectorAll(".detail, .facts")) part.scrollTop = 0;
    const text = this.text();
    at("why").hidden = !(text && this.explains());
    if (!at("why").hidden) this.explain(text);
  }

  async explain(text) {
    this.running = new AbortController();
    const { signal } = this.running;
    at("why-hint").textContent = "Looking…";
    at("words").replaceChildren();
    try {
      const body = { image_id: this.picture.image_id, text: text.slice(0, 300) };
      const found = await post("/v1/explain", body, { signal });
      this.words(found);
    } catch (error) {
      if (error.name !== "AbortError") at("why-hint").textContent = `No heat map: ${error.message}`;
    }
  }

  words(found) {
    const numbered = found.words.some(({ weight }) => Math.abs(weight) >= TELLING);
    at("why-hint").textContent = numbered
      ? "Choose a word to see where. The higher its number, the better it fits the picture; below zero it does not."
      : "Choose a word to see where. No single word stands out.";
    const heat = at("heat");
    const buttons = [];
    const toggle = (button, map, weight) => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of buttons) other.setAttribute("aria-pressed", `${on && other === button}`);
      heat.hidden = !on;
      if (on) drawHeat(heat, map, found.area, weight === null || weight >= TELLING ? 1 : 0.6);
    };
    const add = (words, weight, map) => {
      const way = weight === null || Math.abs(weight) < TELLING ? "" : weight > 0 ? "for" : "against";
      const button = make("button", { class: `word ${way}`, type: "button", "aria-pressed": "false" }, words);
      if (way) button.append(make("small", {}, `${weight > 0 ? "+" : ""}${decimal(weight, 1)}`));
      else if (weight !== null) button.classList.add("mute");
      button.addEventListener("click", () => toggle(button, map, weight));
      buttons.push(button);
    };
    add("All words", null, found.heat);
    for (const { word, weight, heat: map } of found.words) add(word, weight, map);
    at("words").replaceChildren(...buttons);
  }
}

/** Enlarge a small image, within limits. */
function fit(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const narrow = matchMedia("(max-width: 800px)").matches; // the details stand below the image
  const high = (narrow ? 0.46 : 0.8) * window.innerHeight;
  at("frame").style.width = `${Math.round(Math.min(2 * width, (high * width) / height))}px`;
}

/** When and where an image was taken. */
function whence(picture) {
  const moment = momentOf(picture);
  const place = placeOf(picture);
  const parts = [];
  if (moment) {
    const words = moment.length > 10 ? dateWords(moment, { dateStyle: "long", timeStyle: "short" }) : dateWords(moment, { dateStyle: "long" });
    const what = picture.payload.taken_at === moment ? "Taken" : "Changed";
    parts.push(make("span", {}, `${what} `, make("time", { datetime: moment }, words)));
  }
  if (place?.href) parts.push(make("a", { href: place.href, target: "_blank", rel: "noopener noreferrer" }, place.words));
  else if (place) parts.push(make("span", {}, place.words));
  return parts;
}

/** The parts of a text, with places where a long path is better broken than within a name. */
function breakable(text) {
  return text.split(/(?<=[/\\_])/).flatMap((part) => [part, make("wbr")]).slice(0, -1);
}

/** What is known of how well an image fits: words, and with `figures` the scores of both stages. */
function scores(picture, figures) {
  const shown = [];
  const add = (words, value) => shown.push(make("div", {}, make("dt", {}, words), make("dd", {}, value)));
  if (picture.rank === undefined) return shown;
  const match = matchOf(picture);
  if (!figures) {
    if (match) add("Match", match.level);
    add("Place", `${picture.rank}`);
    return shown;
  }
  if (match) add("Match", `${match.level}, ${match.share}`);
  if (picture.score !== null) add("Logit", decimal(picture.score, 2));
  if (picture.retrieval_score !== null) add("Cosine", decimal(picture.retrieval_score, 3));
  if (picture.score !== null) add("Place", `${picture.retrieval_rank} → ${picture.rank}`);
  else add("Place", `${picture.rank}`);
  return shown;
}
