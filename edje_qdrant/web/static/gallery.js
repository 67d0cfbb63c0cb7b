// A grid of images whose rows are full; what each tile says of its image.

import { drawHeat } from "/static/heat.js";
import { matchHeading, matchOf } from "/static/match.js";
import { altOf, dateWords, icon, make, momentOf, nameOf, placeOf, ratioOf, thumbnail } from "/static/parts.js";
import { post } from "/static/service.js";

const CHECK = "m6 12.5 4 4 8-9";
const LAYERS = ["m12 4 8 4.5-8 4.5-8-4.5z", "m4 13 8 4.5 8-4.5"];
const WORDS_OF_WHY = 4;
const MOST_TILES = 300; // of one list

/** Side of the thumbnail for a tile whose longer side is this long, in CSS pixels. */
const sideFor = (pixels) => (pixels * Math.min(2, devicePixelRatio) > 340 ? 640 : 320);

export class Gallery {
  /**
   * `open(hit)` opens an image; `picked` is the selection; `text` is what is searched for, "" for
   * a list that no text ranks; `explains` says whether the service explains matches; `months`
   * whether each month has a heading, in place of how well images match; `pictures(ids)` returns
   * the images of near-duplicates.
   */
  constructor({ open, picked, text, explains, months, pictures }) {
    Object.assign(this, { open, picked, text, explains, months, pictures });
    this.hits = new Map();
    this.part = ""; // the last heading
    this.element = make("div", { class: "gallery" });
    this.section = this.element; // what the last heading is about
    this.grid = null; // the last list of tiles
    this.element.addEventListener("click", (event) => this.click(event));
    this.element.addEventListener("keydown", (event) => this.steer(event));
    this.element.addEventListener("focusin", (event) => this.current(event.target.closest(".tile")));
  }

  get tiles() {
    return [...this.element.querySelectorAll(".tile")];
  }

  add(hits) {
    const height = Number.parseFloat(getComputedStyle(document.documentElement).getPropertyValue("--tall"));
    for (const hit of hits) {
      this.heading(hit);
      if (!this.grid || this.grid.childElementCount >= MOST_TILES) this.start("Pictures");
      this.grid.append(this.tile(hit, height));
    }
    if (!this.element.querySelector(".tile.current")) this.current(this.element.querySelector(".tile"));
    if (this.picked.busy) this.mark();
  }

  /** Start a list of tiles: lists that are full are not laid out again when more come. */
  start(label) {
    this.grid?.classList.toggle("full", this.grid.childElementCount >= MOST_TILES);
    this.grid = make("ol", { class: "grid", "aria-label": label });
    this.section.append(this.grid);
  }

  /** A heading where an image begins a month, or matches less well than those before it. */
  heading(hit) {
    const words = this.months ? monthWords(hit) : this.text ? matchHeading(hit, this.part) : "";
    if (words === this.part) return;
    this.part = words;
    this.section = make("div", { class: "part" }, make("h2", { class: "month" }, words));
    this.element.classList.add("parts");
    this.element.append(this.section);
    this.start(words);
  }

  tile(hit, height) {
    const id = hit.image_id;
    this.hits.set(id, hit);
    const ratio = ratioOf(hit);
    const match = this.text ? matchOf(hit) : null;
    const name = nameOf(hit);
    const said = [hit.rank ? `${hit.rank}. ` : "", altOf(hit), match ? `, ${match.words}` : ""].join("");
    const open = make("button", { class: "open", type: "button", tabindex: "-1", "aria-label": said });
    const image = thumbnail(hit, sideFor(height * Math.max(1, ratio)));
    image.removeAttribute("role"); // the button has the words
    image.removeAttribute("aria-label");
    if (image.tagName === "IMG") image.alt = "";
    image.addEventListener("load", () => image.classList.add("here"));
    open.append(image);
    const pick = make("button", {
      class: "pick", type: "button", role: "checkbox", tabindex: "-1", "aria-checked": "false", "aria-label": `Select ${name}`,
    });
    pick.append(icon(CHECK));
    const tile = make("li", { class: "tile", "data-id": id }, open, pick, this.caption(hit, match));
    if (hit.duplicates?.length) tile.append(this.badge(hit));
    tile.style.setProperty("--ratio", ratio.toFixed(4));
    return tile;
  }

  caption(hit, match) {
    const told = make("div", { class: "told" });
    const first = make("span", { class: "line" }, make("b", {}, nameOf(hit)));
    const moment = momentOf(hit);
    const place = placeOf(hit);
    const facts = [moment && dateWords(moment), place?.words].filter(Boolean);
    const second = make("span", { class: "line" });
    if (match) second.append(make("i", { class: `match ${match.level}` }, match.words));
    if (facts.length) second.append(make("span", {}, facts.join(" · ")));
    told.append(make("span", { class: "lines", "aria-hidden": "true" }, first, second));
    if (this.text && this.explains) {
      const why = make("button", { class: "why", type: "button", tabindex: "-1", "aria-pressed": "false", "aria-label": `Why ${nameOf(hit)}` }, "Why?");
      told.append(why);
    }
    return told;
  }

  badge(hit) {
    const count = hit.duplicates.length + 1;
    const words = `${count} near-duplicates of ${nameOf(hit)}`;
    const badge = make("button", { class: "stack", type: "button", tabindex: "-1", "aria-expanded": "false", "aria-label": words });
    badge.append(icon(...LAYERS), `${count}`);
    return badge;
  }

  click(event) {
    const tile = event.target.closest(".tile");
    const button = event.target.closest("button");
    if (!tile || !button) return;
    const hit = this.hits.get(tile.dataset.id);
    if (button.matches(".pick") || (button.matches(".open") && (this.picked.choosing || event.shiftKey))) {
      this.pick(tile, event.shiftKey);
    } else if (button.matches(".open")) this.open(hit);
    else if (button.matches(".why")) this.why(tile, hit, button);
    else if (button.matches(".stack")) this.spread(tile, hit, button);
  }

  /** Select an image, or with shift all from the last one selected to it. */
  pick(tile, range) {
    const tiles = this.tiles;
    // By its id, as the grid is another one once the rest of the candidates is ranked.
    const from = range ? tiles.findIndex((each) => each.dataset.id === this.picked.last) : -1;
    const to = tiles.indexOf(tile);
    if (from < 0) this.picked.toggle(this.hits.get(tile.dataset.id));
    else {
      for (const each of tiles.slice(Math.min(from, to), Math.max(from, to) + 1)) {
        this.picked.add(this.hits.get(each.dataset.id));
      }
    }
    this.picked.last = tile.dataset.id;
    this.current(tile);
  }

  /** Show which images are selected. */
  mark() {
    for (const tile of this.tiles) {
      const is = this.picked.has(tile.dataset.id);
      tile.classList.toggle("picked", is);
      tile.querySelector(".pick").setAttribute("aria-checked", `${is}`);
    }
  }

  /** Lay the heat of all words over a tile, with the words that speak for it most. */
  async why(tile, hit, button) {
    const heat = tile.querySelector(".heat");
    if (heat) {
      for (const part of tile.querySelectorAll(".heat, .reasons")) part.remove();
      button.setAttribute("aria-pressed", "false");
      return;
    }
    button.disabled = true;
    try {
      const found = await post("/v1/explain", { image_id: hit.image_id, text: this.text.slice(0, 300) });
      const canvas = make("canvas", { class: "heat", "aria-hidden": "true" });
      tile.querySelector(".open").append(canvas);
      drawHeat(canvas, found.heat, found.area);
      const words = [...found.words].sort((a, b) => b.weight - a.weight).filter(({ weight }) => weight > 0.5);
      const told = words.slice(0, WORDS_OF_WHY).map(({ word }) => make("li", {}, word));
      const reasons = told.length ? make("ul", { class: "reasons" }, ...told) : make("p", { class: "reasons" }, "No single word stands out");
      tile.append(reasons);
      button.setAttribute("aria-pressed", "true");
    } catch (error) {
      tile.append(make("p", { class: "reasons" }, `No heat map: ${error.message}`));
    }
    button.disabled = false;
  }

  /** Show the near-duplicates of an image after it, or hide them. */
  async spread(tile, hit, button) {
    const is = button.getAttribute("aria-expanded") !== "true";
    for (const copy of this.element.querySelectorAll(`[data-of="${CSS.escape(hit.image_id)}"]`)) copy.remove();
    button.setAttribute("aria-expanded", `${is}`);
    if (!is) return;
    const others = await this.pictures(hit.duplicates);
    if (button.getAttribute("aria-expanded") !== "true") return; // closed again
    tile.after(...others.map((other) => {
      const copy = this.tile(other, tile.offsetHeight);
      copy.classList.add("copy");
      copy.dataset.of = hit.image_id;
      return copy;
    }));
    this.mark();
  }

  /** Make a tile the one that Tab reaches. */
  current(tile) {
    if (!tile || tile.classList.contains("current")) return;
    for (const [each, index] of [[this.element.querySelector(".tile.current"), "-1"], [tile, "0"]]) {
      if (!each) continue;
      each.classList.toggle("current", index === "0");
      for (const button of each.querySelectorAll("button")) button.setAttribute("tabindex", index);
    }
  }

  /** Focus the tile of an image; return whether there is one. */
  focus(id) {
    const tile = this.element.querySelector(`[data-id="${CSS.escape(id)}"]`);
    if (!tile) return false;
    this.current(tile);
    tile.querySelector(".open").focus({ preventScroll: true });
    tile.scrollIntoView({ block: "nearest" });
    return true;
  }

  steer(event) {
    const tile = event.target.closest(".tile");
    if (!tile || event.ctrlKey || event.metaKey || event.altKey) return;
    const tiles = this.tiles;
    const place = tiles.indexOf(tile);
    let target = null;
    if (event.key === "ArrowRight") target = tiles[place + 1];
    else if (event.key === "ArrowLeft") target = tiles[place - 1];
    else if (event.key === "ArrowDown") target = below(tiles, place, 1);
    else if (event.key === "ArrowUp") target = below(tiles, place, -1);
    else if (event.key === "Home") target = tiles[0];
    else if (event.key === "End") target = tiles.at(-1);
    else if (event.key === "x") this.pick(tile, false);
    else return;
    event.preventDefault();
    if (target) this.focus(target.dataset.id);
  }
}

function monthWords(hit) {
  const moment = momentOf(hit);
  return moment ? dateWords(moment, { month: "long", year: "numeric" }) : "Without a date";
}

/** The tile of the next row, or of the one before, that is nearest to a tile. */
function below(tiles, place, way) {
  const box = tiles[place].getBoundingClientRect();
  const middle = box.left + box.width / 2;
  let best = null;
  let row = null;
  for (let at = place + way; at >= 0 && at < tiles.length; at += way) {
    const other = tiles[at].getBoundingClientRect();
    if (Math.abs(other.top - box.top) < 4) continue;
    row ??= other.top;
    if (Math.abs(other.top - row) > 4) break;
    const distance = Math.abs(other.left + other.width / 2 - middle);
    if (best === null || distance < best.distance) best = { tile: tiles[at], distance };
  }
  return best?.tile;
}
