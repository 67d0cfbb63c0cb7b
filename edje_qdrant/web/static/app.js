// The search page: form, filters, results.

import { Detail } from "/static/detail.js";
import { altOf, cross, decimal, make, nameOf, thumbnail } from "/static/parts.js";
import { Rankings, timeBar } from "/static/results.js";
import { encode, get, hasKey, post, ServiceError, setKey, upload } from "/static/service.js";

const at = (id) => document.getElementById(id);
const results = at("results");
const TOP_K = 10;
const EXAMPLES = ["a red star above a blue ring", "a huge black star on the left of a white moon", "a little red heart"];

let info = null;
let asked = "";
let rankings = null;
let running = null;
const filters = [];

const detail = new Detail({
  asked: () => asked,
  explains: () => info !== null && info.explain,
  like: (picture) => moreLike(picture),
});

/* sliders with a logarithmic scale */

const scale = (share, low, high) => Math.round(low * (high / low) ** share);

function candidates() {
  const most = Math.max(TOP_K, Math.min(info?.max_candidates ?? 1000, info?.pictures ?? 1000));
  const place = Number(at("candidates").value);
  const number = scale(place / 100, TOP_K, most);
  return number > 100 && place < 100 ? Math.round(number / 10) * 10 : number;
}

function budget() {
  const place = Number(at("budget").value);
  if (place === 100) return null;
  const ms = scale(place / 99, 10, 3000);
  return ms > 100 ? Math.round(ms / 10) * 10 : ms;
}

function showDials() {
  at("candidates-value").textContent = `${candidates()}`;
  const ms = budget();
  at("budget-value").textContent = ms === null ? "none" : `${ms} ms`;
}

/* filters */

function readFilter(text) {
  const [, field, value] = /^\s*([^=\s][^=]*?)\s*=\s*(.+?)\s*$/.exec(text) || [];
  if (field === undefined) return null;
  if (value === "true" || value === "false") return [field, value === "true"];
  if (!/^-?(0|[1-9]\d{0,18})$/.test(value)) return [field, value];
  return [field, Number.isSafeInteger(Number(value)) ? Number(value) : BigInt(value)];
}

function filterBody() {
  if (!filters.length) return null;
  const body = {};
  for (const [field, value] of filters) (body[field] ||= []).push(value);
  return body;
}

function showFilters() {
  const chips = filters.map(([field, value], place) => {
    const chip = make(
      "button",
      { class: "chip", type: "button", "aria-label": `Remove the filter ${field}=${value}` },
      make("span", {}, make("b", {}, `${field} `), `${value}`),
      cross(),
    );
    chip.addEventListener("click", () => {
      filters.splice(place, 1);
      showFilters();
      at("filter").focus();
      again();
    });
    return make("li", {}, chip);
  });
  at("chips").replaceChildren(...chips);
}

function addFilter() {
  const input = at("filter");
  const text = input.value.trim();
  const read = text ? readFilter(text) : null;
  input.setAttribute("aria-invalid", `${Boolean(text) && read === null}`);
  if (!read) return;
  filters.push(read);
  input.value = "";
  showFilters();
  again();
}

/* messages */

function say(kind, ...parts) {
  at("notice").replaceChildren(...(kind ? [make("p", { class: `note ${kind}` }, ...parts)] : []));
}

function fail(error) {
  if (error.name === "AbortError") return;
  if (error instanceof ServiceError && error.status === 401) {
    at("key-title").textContent = hasKey() ? "That key does not fit" : "This service asks for a key";
    setKey(null);
    at("key").showModal();
    return;
  }
  const number = error.requestId ? make("small", {}, error.requestId) : null;
  say("bad", make("b", {}, "That did not work."), error.message, number);
  results.replaceChildren();
}

function empty(title, words) {
  results.replaceChildren(make("div", { class: "empty" }, make("h2", {}, title), make("p", {}, words)));
}

/** Run one task at a time; abort the previous one. */
async function work(task) {
  running?.abort();
  const mine = (running = new AbortController());
  document.body.classList.add("working");
  results.classList.add("busy");
  results.setAttribute("aria-busy", "true");
  say(null);
  try {
    if (!info) await describe(mine.signal);
    await task(mine.signal);
  } catch (error) {
    fail(error);
  }
  if (running === mine) {
    document.body.classList.remove("working");
    results.classList.remove("busy");
    results.removeAttribute("aria-busy");
  }
}

function ghosts() {
  if (results.childElementCount && !results.querySelector(".empty")) return;
  const list = () => make("ol", {}, ...Array.from({ length: 5 }, () => make("li", {}, make("div", { class: "ghost" }))));
  const board = make("div", { class: "ranks", "data-shown": "right", "aria-hidden": "true" });
  board.append(make("div", { class: "left" }, list()), make("div"), make("div", { class: "right" }, list()));
  results.replaceChildren(make("div", { class: "took" }), board);
}

/* searches */

function body() {
  return {
    text: asked,
    top_k: TOP_K,
    num_candidates: Math.max(TOP_K, candidates()),
    budget_ms: budget(),
    filter: filterBody(),
    on_missing: "first_stage",
    first_stage: true,
  };
}

function search() {
  asked = at("text").value.trim();
  remember();
  if (!asked) return wall();
  document.title = `${asked} — edje`;
  return work(async (signal) => {
    ghosts();
    const answer = await post("/v1/search", body(), { signal });
    if (answer.degraded) say("warn", make("b", {}, "Less than was asked for:"), answer.reason);
    else if (answer.truncated) say("warn", make("b", {}, "Not all of the text was read:"), answer.reason);
    if (!answer.hits.length) {
      const words = filters.length ? "Nothing in the collection passes these filters." : "The collection is empty.";
      return empty("Nothing found", words);
    }
    rankings = new Rankings(answer, (hit) => detail.open(hit, rankings.hits));
    results.replaceChildren(timeBar(answer), rankings.tabs, rankings.board);
    more(answer.cursor);
    rankings.connect();
  });
}

function more(cursor) {
  results.querySelector(".more")?.remove();
  if (!cursor) return;
  const button = make("button", { class: "plain", type: "button" }, "Show ten more");
  button.addEventListener("click", () =>
    work(async (signal) => {
      const answer = await post("/v1/search/next", { cursor, top_k: TOP_K }, { signal });
      const seen = rankings.hits.length;
      rankings.add(answer.hits);
      rankings.connect();
      more(answer.cursor);
      rankings.right.children[seen]?.firstChild.focus();
    }),
  );
  results.append(make("div", { class: "more" }, button));
}

/** Show images ranked by the first stage alone. */
function gallery(head, answer) {
  const tiles = answer.hits.map((hit) => {
    const tile = make("button", { type: "button", title: nameOf(hit), "aria-label": `${hit.rank}. ${altOf(hit)}` }, thumbnail(hit, 320));
    tile.append(make("span", { class: "tag" }, decimal(hit.retrieval_score, 3)));
    tile.addEventListener("click", () => detail.open(hit, answer.hits));
    return tile;
  });
  results.replaceChildren(head, timeBar(answer, true), make("div", { class: "wall" }, ...tiles));
}

function moreLike(picture) {
  asked = "";
  at("text").value = "";
  window.scrollTo({ top: 0 });
  return work(async (signal) => {
    const options = { liked: [picture.image_id], top_k: 24, filter: filterBody() };
    const answer = await post("/v1/recommend", options, { signal });
    if (!answer.hits.length) return empty("Nothing like it", "No other picture passes these filters.");
    const words = make("div", {}, make("h2", {}, `More like ${nameOf(picture)}`), make("p", {}, "By the first stage alone."));
    gallery(make("div", { class: "asked" }, thumbnail(picture), words), answer);
  });
}

function searchByPicture(file) {
  asked = "";
  at("text").value = "";
  return work(async (signal) => {
    if (info && file.size > info.max_upload_bytes) {
      throw new ServiceError(413, { message: `The picture has more than ${info.max_upload_bytes >> 20} MB.` });
    }
    ghosts();
    const form = new FormData();
    form.append("file", file);
    form.append("top_k", "24");
    const filter = filterBody();
    if (filter) form.append("filter", encode(filter));
    const answer = await upload("/v1/search/image", form, { signal });
    if (!answer.hits.length) return empty("Nothing like it", "No picture passes these filters.");
    const place = URL.createObjectURL(file);
    const image = make("img", { src: place, alt: "Your picture" });
    const words = make("div", {}, make("h2", {}, `Like ${file.name}`), make("p", {}, "By the first stage alone; your picture is not kept."));
    gallery(make("div", { class: "asked" }, image, words), answer);
  });
}

function wall() {
  document.title = "edje — picture search";
  return work(async (signal) => {
    const { pictures } = await get("/v1/images?limit=32", { signal });
    if (!pictures.length) {
      return empty("The collection is empty", "Add pictures with edje-qdrant ingest, or over HTTP with /v1/ingest.");
    }
    if (!pictures.some((picture) => picture.thumbnail)) {
      say("warn", make("b", {}, "No pictures to show:"), "the service shows those in the folder that edje-qdrant serve --images names.");
    }
    const tiles = pictures.map((picture) => {
      const tile = make("button", { type: "button", title: nameOf(picture), "aria-label": altOf(picture) }, thumbnail(picture, 320));
      tile.addEventListener("click", () => detail.open(picture, pictures));
      return tile;
    });
    const head = make("div", { class: "wall-head" }, make("h2", {}, "In the collection"));
    if (pictures.length < info.pictures) head.append(make("p", {}, `${pictures.length} of ${info.pictures.toLocaleString()}`));
    const parts = [head, make("div", { class: "wall" }, ...tiles)];
    if (info.model === "demo") {
      const tries = EXAMPLES.map((text) => {
        const button = make("button", { type: "button" }, text);
        button.addEventListener("click", () => {
          at("text").value = text;
          search();
        });
        return button;
      });
      parts.unshift(make("div", { class: "tries" }, ...tries));
    }
    results.replaceChildren(...parts);
  });
}

const again = () => (asked ? search() : undefined);

/* the address holds the search, so that it can be shared */

function remember() {
  const parts = new URLSearchParams();
  if (asked) parts.set("q", asked);
  if (asked && at("candidates").value !== "50") parts.set("c", at("candidates").value);
  if (asked && at("budget").value !== "100") parts.set("b", at("budget").value);
  for (const [field, value] of asked ? filters : []) parts.append("f", `${field}=${value}`);
  const address = parts.size ? `?${parts}` : location.pathname;
  if (address !== (location.search || location.pathname)) history.pushState(null, "", address);
}

function recall() {
  const parts = new URLSearchParams(location.search);
  at("text").value = parts.get("q") || "";
  at("candidates").value = parts.get("c") || "50";
  at("budget").value = parts.get("b") || "100";
  filters.splice(0, filters.length, ...parts.getAll("f").map(readFilter).filter(Boolean));
  showFilters();
  showDials();
  return search();
}

/** Read what the service serves, once it answers. */
async function describe(signal) {
  info = await get("/v1/collection", { signal });
  const count = make("b", {}, `${info.pictures.toLocaleString()} pictures`);
  at("collection").replaceChildren(count, ` in ${info.name}`);
  at("key-button").hidden = !hasKey();
  showDials();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (document.activeElement === at("filter")) return addFilter();
  return search();
});
at("filter").addEventListener("blur", addFilter);
for (const dial of ["candidates", "budget"]) {
  at(dial).addEventListener("input", showDials);
  at(dial).addEventListener("change", again);
}
at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) searchByPicture(file);
  event.target.value = "";
});
at("key-form").addEventListener("submit", () => {
  setKey(at("key-input").value.trim());
  at("key-input").value = "";
  at("key-button").hidden = !hasKey();
  recall();
});
at("key-button").addEventListener("click", () => at("key").showModal());
addEventListener("popstate", recall);

addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range";
  if (event.key === "/" && !typing && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    at("text").focus();
    at("text").select();
  }
  if (event.key === "ArrowDown" && event.target === at("text")) {
    const first = results.querySelector(".right .hit, .wall button");
    if (first) {
      event.preventDefault();
      first.focus();
    }
  }
});

let over = 0;
const carriesFile = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
const overlay = (by) => {
  over = Math.max(0, over + by);
  at("drop").hidden = over === 0;
};
addEventListener("dragenter", (event) => carriesFile(event) && overlay(1));
addEventListener("dragleave", (event) => carriesFile(event) && overlay(-1));
addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  overlay(-over);
  const [file] = event.dataTransfer.files;
  if (file) searchByPicture(file);
});

recall();
