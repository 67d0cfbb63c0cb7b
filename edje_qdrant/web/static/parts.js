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

/** Name of an image: text of its payload, else its file name. */
export function nameOf(picture) {
  const { title, name, path } = picture.payload;
  for (const text of [title, name]) if (typeof text === "string" && text.trim()) return text;
  if (typeof path === "string") return path.split(/[\\/]/).pop();
  return picture.image_id.slice(0, 8);
}

export function altOf(picture) {
  const { alt, caption } = picture.payload;
  for (const text of [alt, caption]) if (typeof text === "string" && text.trim()) return text;
  return `Picture ${nameOf(picture)}`;
}

/** A thumbnail, or an empty box if the service shows none. */
export function thumbnail(picture, size = 160) {
  const image = make("img", { class: "thumb", alt: altOf(picture), loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => {
    const blank = make("span", { class: "noimage thumb", role: "img", "aria-label": altOf(picture) });
    blank.append(icon("M4 5h16v14H4zM4 19 20 5"));
    image.replaceWith(blank);
  });
  show(image, `/v1/images/${encodeURIComponent(picture.image_id)}/thumbnail?size=${size}`);
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
