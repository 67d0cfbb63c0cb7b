// Helpers for elements and numbers.

import { show } from "/static/service.js";

/** Create an element: `make("p", {class: "hint"}, "text", child)`. Text is never read as HTML. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(...paths) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  for (const d of paths) {
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

export const cross = () => icon("m7 7 10 10M17 7 7 17");

/** Where in a film or a document an image is: {words, open, href}; null for an image of its own. */
export function partOf(picture) {
  const { path } = picture.payload;
  const [, time, page] = (typeof path === "string" && path.match(/#(?:t=(\d+(?:\.\d+)?)|page=(\d+))$/)) || [];
  if (time === undefined && page === undefined) return null;
  const words = time === undefined ? `page ${page}` : clock(Number(time));
  const href = `/v1/images/${encodeURIComponent(picture.image_id)}/source#${time === undefined ? `page=${page}` : `t=${time}`}`;
  return { words, open: time === undefined ? `Open the document at ${words}` : `Open the film at ${words}`, href };
}

function clock(seconds) {
  const [minutes, rest] = [Math.floor(seconds / 60), Math.floor(seconds % 60)];
  const hours = Math.floor(minutes / 60);
  const end = `${String(rest).padStart(2, "0")}`;
  return hours ? `${hours}:${String(minutes % 60).padStart(2, "0")}:${end}` : `${minutes}:${end}`;
}

/** Name of an image: text of its payload, else its file name, with the time or the page. */
export function nameOf(picture) {
  const { title, name, path } = picture.payload;
  for (const text of [title, name]) if (typeof text === "string" && text.trim()) return text;
  const part = partOf(picture);
  if (part) return `${path.slice(0, path.lastIndexOf("#")).split(/[\\/]/).pop()} · ${part.words}`;
  if (typeof path === "string") return path.split(/[\\/]/).pop();
  return picture.image_id.slice(0, 8);
}

export function altOf(picture) {
  const { alt, caption } = picture.payload;
  for (const text of [alt, caption]) if (typeof text === "string" && text.trim()) return text;
  return `Picture ${nameOf(picture)}`;
}

/** Width of an image by its height; 4/3 if its payload has no size. */
export function ratioOf(picture) {
  const { width, height } = picture.payload;
  const known = Number(width) > 0 && Number(height) > 0;
  // A panorama or a receipt is cropped, so that its row keeps its height.
  return known ? Math.min(3.2, Math.max(0.45, Number(width) / Number(height))) : 4 / 3;
}

const DAY = /^\d{4}-\d\d-\d\d/;

/** When it was taken, else changed: the payload's own text, as RFC 3339; "" if it has none. */
export function momentOf(picture) {
  const { taken_at: taken, modified_at: modified } = picture.payload;
  return [taken, modified].find((text) => typeof text === "string" && DAY.test(text)) || "";
}

/** A moment in words, by the clock of the place where it was taken. */
export function dateWords(moment, options = { dateStyle: "medium" }) {
  const date = new Date(`${moment.slice(0, 19).padEnd(19, "T00:00:00".slice(moment.length - 10))}Z`);
  if (Number.isNaN(date.getTime())) return moment.slice(0, 10);
  return new Intl.DateTimeFormat(undefined, { ...options, timeZone: "UTC" }).format(date);
}

/** Where it was taken: {words, href} of the payload's `place`; null if it has none. */
export function placeOf(picture) {
  const { place, city, location } = picture.payload;
  const named = [city, location, place].find((text) => typeof text === "string" && text.trim());
  const { lat, lon } = typeof place === "object" && place ? place : {};
  if (typeof lat !== "number" || typeof lon !== "number") return named ? { words: named, href: null } : null;
  const [north, east] = [lat.toFixed(4), lon.toFixed(4)];
  return {
    words: named || `${north}, ${east}`.replaceAll("-", "\u2212"),
    href: `https://www.openstreetmap.org/?mlat=${north}&mlon=${east}#map=14/${north}/${east}`,
  };
}

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      show(target, target.dataset.from);
    }
  },
  { rootMargin: "600px" },
);

/** A thumbnail, loaded when it is near the screen, or an empty box if the service shows none. */
export function thumbnail(picture, size = 160) {
  const blank = make("span", { class: "noimage thumb", role: "img", "aria-label": altOf(picture) });
  blank.append(icon("M4 5h16v14H4zM4 19 20 5"));
  if (picture.thumbnail === null) return blank;
  const image = make("img", { class: "thumb", alt: altOf(picture), loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(blank));
  image.dataset.from = `/v1/images/${encodeURIComponent(picture.image_id)}/thumbnail?size=${size}`;
  near.observe(image);
  return image;
}

export function moved(hit) {
  const steps = hit.retrieval_rank - hit.rank;
  if (steps > 0) return { way: "up", text: `▲ ${steps}`, words: `up ${steps}` };
  if (steps < 0) return { way: "down", text: `▼ ${-steps}`, words: `down ${-steps}` };
  return { way: "same", text: "–", words: "where it was" };
}

/** A number with a minus sign as wide as a digit. */
export const decimal = (value, places) => value.toFixed(places).replace("-", "\u2212");

export const percent = (share) =>
  share < 0.005 ? "< 1 %" : share > 0.995 ? "> 99 %" : `${Math.round(100 * share)} %`;

export const milliseconds = (ms) =>
  ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : ms >= 10 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`;
