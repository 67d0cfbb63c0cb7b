// Both rankings side by side, with moves between them, and the timings.

import { matchOf } from "/static/match.js";
import { altOf, decimal, make, milliseconds, moved, nameOf, thumbnail } from "/static/parts.js";

const STAGES = [
  ["queue", "waiting"],
  ["encode", "read the text"],
  ["retrieve", "first stage"],
  ["fetch", "fetch tokens"],
  ["rerank", "rerank"],
];
const SVG = "http://www.w3.org/2000/svg";

/** Bar of an answer's time by stage; `going` says that more is being ranked. */
export function timeBar(answer, going = null) {
  const timings = answer.timings_ms;
  const bar = make("div", { class: "bar", "aria-hidden": "true" });
  const legend = make("div", { class: "legend" });
  for (const [stage, words] of STAGES) {
    const ms = timings[stage] || 0;
    if (ms < 0.05) continue;
    const part = make("i", { class: stage });
    part.style.flexGrow = ms;
    bar.append(part);
    legend.append(make("span", { class: stage }, words, make("b", {}, milliseconds(ms))));
  }
  const scored = answer.scored === answer.candidates ? `${answer.scored}` : `${answer.scored} of ${answer.candidates}`;
  const sum = make("p", { class: "sum" }, ...(going ? [going] : [make("b", {}, milliseconds(timings.total)), `, ${scored} candidates scored`]));
  return make("div", { class: "took" }, bar, sum, legend);
}

function row(hit, side, open) {
  const shift = moved(hit);
  const place = side === "left" ? hit.retrieval_rank : hit.rank;
  let score;
  if (side === "left") score = `cosine ${decimal(hit.retrieval_score, 3)}`;
  else if (hit.score === null) score = "not scored";
  else score = `logit ${decimal(hit.score, 2)}`;
  const name = make("span", { class: "name" });
  const match = side === "right" ? matchOf(hit) : null;
  if (match) {
    name.append(make("b", { class: match.level }, match.words), `${match.share} · ${score}`);
    const level = make("i");
    level.style.width = `${100 * hit.probability}%`;
    name.append(make("span", { class: "meter" }, level));
  } else {
    name.append(make("b", {}, score.replace(/^(cosine|logit) /, "")), nameOf(hit));
  }
  const gone = side === "left" && hit.rank > 0 ? `now ${hit.rank}` : "";
  const button = make(
    "button",
    {
      class: "hit",
      type: "button",
      "data-id": hit.image_id,
      title: nameOf(hit),
      "aria-label": `${place}. ${altOf(hit)}, ${name.firstChild.textContent}, ${side === "right" ? shift.words : gone}`,
    },
    make("span", { class: "place" }, `${place}`),
    thumbnail(hit),
    name,
  );
  if (side === "right") button.append(make("span", { class: `moved ${shift.way}` }, shift.text));
  else button.append(make("span", { class: "gone" }, shift.way === "same" ? "" : `→ ${hit.rank}`));
  button.addEventListener("click", () => open(hit));
  return make("li", {}, button);
}

export class Rankings {
  /** `open(hit)` opens an image. */
  constructor(open) {
    this.left = make("ol");
    this.right = make("ol");
    this.links = make("div", { class: "links", "aria-hidden": "true" });
    const column = (side, title, words, list) =>
      make("div", { class: side }, make("h2", {}, title, make("small", {}, words)), list);
    this.board = make(
      "div",
      { class: "ranks", "data-shown": "right" },
      column("left", "First stage", "nearest vectors", this.left),
      this.links,
      column("right", "Reranked", "joint encoder", this.right),
    );
    this.tabs = make("div", { class: "tabs", role: "tablist" });
    for (const [side, words] of [["left", "First stage"], ["right", "Reranked"]]) {
      const tab = make("button", { type: "button", role: "tab", "aria-selected": `${side === "right"}` }, words);
      tab.addEventListener("click", () => {
        this.board.dataset.shown = side;
        for (const other of this.tabs.children) other.setAttribute("aria-selected", `${other === tab}`);
      });
      this.tabs.append(tab);
    }
    this.open = open;
    this.before = [];
    this.hits = [];
    this.board.addEventListener("pointerover", (event) => this.light(event.target.closest(".hit")));
    this.board.addEventListener("pointerleave", () => this.light(null));
    this.board.addEventListener("focusin", (event) => this.light(event.target.closest(".hit")));
    this.board.addEventListener("focusout", () => this.light(null));
    this.board.addEventListener("keydown", (event) => this.steer(event));
    new ResizeObserver(() => this.connect()).observe(this.board);
  }

  /** Add ranks to both rankings: hits, and images of the first stage's. */
  add(hits, before) {
    this.hits.push(...hits);
    this.before.push(...before);
    for (const hit of before) this.left.append(row(hit, "left", this.open));
    for (const hit of hits) this.right.append(row(hit, "right", this.open));
    this.connect();
  }

  /** Focus the row of an image; return whether there is one. */
  focus(id) {
    const button = this.right.querySelector(`[data-id="${CSS.escape(id)}"]`);
    button?.focus();
    return Boolean(button);
  }

  light(button) {
    const id = button ? button.dataset.id : null;
    this.board.classList.toggle("lit", id !== null);
    for (const part of this.board.querySelectorAll("[data-id]")) {
      part.classList.toggle("on", part.dataset.id === id);
    }
  }

  steer(event) {
    const button = event.target.closest(".hit");
    if (!button) return;
    const item = button.parentElement;
    let target = null;
    if (event.key === "ArrowDown") target = item.nextElementSibling?.firstChild;
    else if (event.key === "ArrowUp") target = item.previousElementSibling?.firstChild;
    else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      const other = event.key === "ArrowLeft" ? this.left : this.right;
      if (item.parentElement !== other) {
        target =
          other.querySelector(`[data-id="${CSS.escape(button.dataset.id)}"]`) ||
          other.children[Math.min([...item.parentElement.children].indexOf(item), other.children.length - 1)]?.firstChild;
      }
    } else return;
    event.preventDefault();
    target?.focus();
  }

  /** Draw a line from each image's first-stage rank to its final rank. */
  connect() {
    const width = this.links.clientWidth;
    const top = this.links.getBoundingClientRect().top;
    const svg = document.createElementNS(SVG, "svg");
    const middle = (item) => {
      const box = item.getBoundingClientRect();
      return box.top - top + box.height / 2;
    };
    const draw = (d, id, way) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", d);
      path.setAttribute("class", way);
      path.dataset.id = id;
      svg.append(path);
    };
    const write = (x, y, text, id) => {
      const label = document.createElementNS(SVG, "text");
      label.setAttribute("x", x);
      label.setAttribute("y", y + 4);
      label.setAttribute("text-anchor", "end");
      label.textContent = text;
      label.dataset.id = id;
      labels.push(label);
    };
    const labels = [];
    if (width > 0) {
      const places = new Map(this.before.map((hit, at) => [hit.image_id, at]));
      const shown = new Set(this.hits.map((hit) => hit.image_id));
      this.hits.forEach((hit, at) => {
        const y = middle(this.right.children[at]);
        const way = moved(hit).way;
        if (places.has(hit.image_id)) {
          const from = middle(this.left.children[places.get(hit.image_id)]);
          draw(`M6 ${from}C${width / 2} ${from} ${width / 2} ${y} ${width - 6} ${y}`, hit.image_id, way);
        } else {
          draw(`M${width - 44} ${y}H${width - 6}`, hit.image_id, `${way} beyond`);
          write(width - 50, y, `from ${hit.retrieval_rank}`, hit.image_id);
        }
      });
      this.before.forEach((hit, at) => {
        if (shown.has(hit.image_id)) return;
        const y = middle(this.left.children[at]);
        draw(`M6 ${y}H30`, hit.image_id, "down beyond");
      });
    }
    svg.append(...labels);
    this.links.replaceChildren(svg);
  }
}
