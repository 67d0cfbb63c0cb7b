// The page: its form, and what each state shows.

import { Detail } from "/static/detail.js";
import { FilterBox } from "/static/filter_box.js";
import { Gallery } from "/static/gallery.js";
import { keep, kept } from "/static/kept.js";
import { Listing } from "/static/listing.js";
import { showModelNote } from "/static/model_note.js";
import { make, milliseconds, nameOf, thumbnail } from "/static/parts.js";
import { Rankings, timeBar } from "/static/results.js";
import { kindOf, listKey, Router } from "/static/router.js";
import { Selection } from "/static/selection.js";
import { get, hasKey, ServiceError, setKey } from "/static/service.js";
import { suggestions } from "/static/suggestions.js";
import { Uploads } from "/static/uploads.js";

const at = (id) => document.getElementById(id);
const results = at("results");
const ROWS = 10; // of the rankings, at a time
const AHEAD = 1200; // pixels above the end of a gallery from which on more is asked for
const KEPT_LISTS = 8;
const LEAST_CANDIDATES = 10;
const BUDGETS = [10, 3000]; // milliseconds

let info = null;
let running = null;
let finishing = null; // what ranks the rest of a list
let shown = null; // what results show: {key, view, listing, board, rows}
const listings = new Map();

const router = new Router(render);
const state = () => router.state;
const picked = new Selection({
  changed: () => shown?.board.mark?.(),
  like: (ids) => router.ask({ like: ids }),
  failed: fail,
});
const detail = new Detail({
  text: () => state().text,
  figures: () => kindOf(state()) === "text" && state().view === "compare",
  explains: () => info !== null && info.explain,
  shut: () => router.shut(),
  step,
  like: (picture) => router.ask({ like: [picture.image_id] }),
});
const filterBox = new FilterBox({
  filters: () => state().filters,
  change: (filters) => router.go({ filters, open: "" }),
});
const uploads = new Uploads({
  limits: () => info,
  added: (since) => {
    listings.clear();
    filterBox.forget();
    shown = null;
    info = null;
    router.go({ text: "", like: [], sent: "", filters: [`modified_at>=${since}`], open: "" });
  },
});

/* sliders with a logarithmic scale */

const scale = (share, low, high) => Math.round(low * (high / low) ** share);
const share = (number, low, high) => Math.min(1, Math.max(0, Math.log(number / low) / Math.log(high / low)));
const rounded = (number) => (number > 100 ? Math.round(number / 10) * 10 : number);
const mostCandidates = () =>
  Math.max(LEAST_CANDIDATES + 1, Math.min(info?.max_candidates ?? 1000, info?.pictures ?? 1000));

function chosenCandidates() {
  const place = Number(at("candidates").value);
  const number = scale(place / 100, LEAST_CANDIDATES, mostCandidates());
  return place < 100 ? rounded(number) : number;
}

function chosenBudget() {
  const place = Number(at("budget").value);
  return place === 100 ? null : rounded(scale(place / 99, ...BUDGETS));
}

function showDials() {
  const { candidates, budget } = state();
  const number = Math.min(candidates ?? info?.num_candidates ?? LEAST_CANDIDATES, mostCandidates());
  at("candidates").value = Math.round(100 * share(number, LEAST_CANDIDATES, mostCandidates()));
  at("candidates-value").textContent = `${number}`;
  at("budget").value = budget === null ? 100 : Math.round(99 * share(budget, ...BUDGETS));
  at("budget-value").textContent = budget === null ? "none" : `${budget} ms`;
}

/* form */

function showForm() {
  const now = state();
  const kind = kindOf(now);
  if (at("text") !== document.activeElement || at("text").value.trim() !== now.text) at("text").value = now.text;
  const compares = kind === "text";
  at("views").hidden = !compares;
  for (const button of at("views").children) button.setAttribute("aria-pressed", `${button.dataset.view === now.view}`);
  const chosen = now.candidates !== null || now.budget !== null;
  at("dials").hidden = !(compares && (now.view === "compare" || chosen));
  const fields = info?.text_fields ?? [];
  at("by-words").hidden = !fields.length || now.like.length > 0 || Boolean(now.sent);
  at("by-words").setAttribute("aria-pressed", `${now.words}`);
  at("by-words").title = `Search the words of these fields, too: ${fields.join(", ")}`;
  at("choose").hidden = compares && now.view === "compare";
  showDials();
  filterBox.show();
  document.title = now.text ? `${now.text} — edje` : "edje — picture search";
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
    if (!at("key").open) at("key").showModal();
    return;
  }
  const number = error.requestId ? make("small", {}, error.requestId) : null;
  say("bad", make("b", {}, "That did not work."), error.message, number);
}

function failList(error) {
  fail(error);
  if (error.name === "AbortError") return;
  shown = null;
  results.replaceChildren();
  at("end").replaceChildren();
}

function empty(title, words, ...more) {
  return make("div", { class: "empty" }, make("h2", {}, title), make("p", {}, words), ...more);
}

function nothing(listing) {
  const { kind, state: of } = listing;
  if (of.filters.length) {
    const all = make("button", { class: "plain", type: "button" }, "Remove the filters");
    all.addEventListener("click", () => router.go({ filters: [], open: "" }));
    return empty("Nothing found", "Nothing in the collection passes these filters.", all);
  }
  if (kind === "like" || kind === "sent") return empty("Nothing like it", "There is no other picture.");
  if (info.ingest) return empty("The collection is empty", "Drop pictures here, or add some with the button above.");
  return empty("The collection is empty", "Add pictures with edje-qdrant ingest, or over HTTP with /v1/ingest.");
}

function ghosts(view) {
  const count = view === "compare" ? 5 : 18;
  const parts = Array.from({ length: count }, (_, place) => {
    const ghost = make("li", { class: "tile ghost" });
    ghost.style.setProperty("--ratio", `${[1.5, 1, 1.33, 0.75, 1.78][place % 5]}`);
    return ghost;
  });
  return make("ol", { class: view === "compare" ? "ghost-rows" : "grid", "aria-hidden": "true" }, ...parts);
}

/* states */

/** Show a state. Its list is asked for unless it is known; `place` is where the page was. */
async function render(now, place) {
  showForm();
  const key = listKey(now);
  const view = now.text ? now.view : "gallery";
  const same = shown && shown.key === key && shown.view === view && shown.listing.answer;
  if (!same) {
    detail.close();
    picked.clear();
    if (!(await work((signal) => list(now, key, view, place, signal)))) return;
  }
  await showOpen();
}

/** Run one task at a time; abort the previous one. Return whether it was finished. */
async function work(task) {
  running?.abort();
  const mine = (running = new AbortController());
  document.body.classList.add("working");
  results.setAttribute("aria-busy", "true");
  say(null);
  let finished = false;
  try {
    if (!info) await describe(mine.signal);
    await task(mine.signal);
    finished = !mine.signal.aborted;
  } catch (error) {
    if (running === mine) failList(error);
  }
  if (running === mine) {
    running = null;
    document.body.classList.remove("working");
    results.removeAttribute("aria-busy");
  }
  return finished;
}

async function list(now, key, view, place, signal) {
  let listing = listings.get(key);
  if (!listing?.answer) {
    listing = new Listing(now, info);
    shown = null;
    const slow = setTimeout(() => results.replaceChildren(ghosts(view)), 150);
    at("end").replaceChildren();
    try {
      await listing.more(signal);
    } finally {
      clearTimeout(slow);
    }
    listings.delete(key);
    listings.set(key, listing);
    if (listings.size > KEPT_LISTS) listings.delete(listings.keys().next().value);
  }
  finish(listing, key, view);
  tellOf(listing);
  const head = await headOf(listing, signal);
  if (signal.aborted) return;
  if (!listing.hits.length) {
    shown = { key, view, listing, board: {} };
    results.replaceChildren(...head, nothing(listing));
    at("end").replaceChildren();
    return;
  }
  const board = view === "compare" ? new Rankings(open) : gallery(listing);
  shown = { key, view, listing, board, rows: 0 };
  if (view === "compare") {
    results.replaceChildren(timeBar(listing.answer, listing.partial && going(listing.answer)), board.tabs, board.board);
    moreRows();
  } else {
    results.replaceChildren(...head, board.element);
    board.add(listing.hits);
    showEnd();
    setTimeout(moreTiles); // once the page is where it was
  }
  if (place === null) scrollTo(0, 0);
  else {
    // As far down as it was, if the list is as long.
    for (let pages = 0; place > document.documentElement.scrollHeight - innerHeight && pages < 20; pages++) {
      if (view === "compare" || listing.done) break;
      board.add(await listing.more(signal));
    }
    scrollTo(0, place);
  }
}

function gallery(listing) {
  return new Gallery({
    open,
    picked,
    text: listing.state.text,
    explains: info.explain,
    months: listing.kind === "home" && listing.answer.order === "newest",
    pictures: async (ids) => {
      const found = await Promise.all(ids.map((id) => pictureOf(id).catch(() => null)));
      return found.filter(Boolean);
    },
  });
}

/** Words about an answer of which the rest is still being ranked. */
function going({ scored, candidates, timings_ms: timings }) {
  const words = `${scored} of ${candidates} candidates ranked in ${milliseconds(timings.total)}; the others follow`;
  return make("span", { class: "going" }, words);
}

/** Rank all candidates of a list of which some were not ranked in time, and show it again. */
async function finish(listing, key, view) {
  finishing?.abort();
  if (!listing.partial) return;
  const mine = (finishing = new AbortController());
  const whole = new Listing(listing.state, info, { whole: true });
  try {
    await whole.more(mine.signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    listing.partial = false; // what was ranked stays
    if (shown?.listing === listing) tellOf(listing);
    return;
  }
  if (listings.get(key) === listing) listings.set(key, whole);
  if (shown?.listing !== listing) return;
  const focused = document.activeElement?.closest?.("[data-id]")?.dataset.id;
  await work((signal) => list(listing.state, key, view, scrollY, signal));
  if (focused) shown?.board.focus?.(focused);
}

/** Say what is remarkable about an answer. */
function tellOf(listing) {
  const { answer, kind, partial } = listing;
  if (partial) return;
  if (answer.degraded) say("warn", make("b", {}, "Less than was asked for:"), answer.reason);
  else if (answer.truncated) say("warn", make("b", {}, "Not all of the text was read:"), answer.reason);
  const images = answer.pictures || [];
  if (kind === "home" && images.length && !images.some((picture) => picture.thumbnail)) {
    say("warn", make("b", {}, "No pictures to show:"), "the service shows those in the folder that edje-qdrant serve --images names.");
  }
}

/** What stands above a list. */
async function headOf(listing, signal) {
  const { kind, state: of, answer } = listing;
  if (kind === "home") {
    const parts = [];
    const tries = (of.filters.length ? [] : await suggestions(signal)).map((text) => {
      const button = make("button", { type: "button" }, text);
      button.addEventListener("click", () => router.ask({ text }));
      return button;
    });
    if (tries.length) parts.push(make("div", { class: "tries", role: "group", "aria-label": "Try" }, ...tries));
    if (answer.order === "id" && answer.reason) parts.push(make("p", { class: "order" }, answer.reason));
    return parts;
  }
  if (kind === "text") {
    if (!listing.hits.length) return [];
    const { timings_ms: timings, scored, candidates } = answer;
    const number = scored === candidates ? scored.toLocaleString() : `${scored.toLocaleString()} of ${candidates.toLocaleString()}`;
    if (listing.partial) return [make("p", { class: "order" }, going(answer))];
    const words = `${scored === candidates ? "Best first, of " : ""}${number} candidates${scored === candidates ? "" : " ranked"}, in ${milliseconds(timings.total)}`;
    return [make("p", { class: "order" }, words)];
  }
  if (kind === "sent") {
    const place = URL.createObjectURL(listing.file || (await kept(of.sent)));
    const image = make("img", { src: place, alt: "Your picture" });
    const title = make("h2", {}, `Like ${listing.file?.name || "your picture"}`);
    return [make("div", { class: "asked" }, image, make("div", {}, title, make("p", {}, "Nearest first. Your picture is not kept by the service.")))];
  }
  const images = await Promise.all(of.like.slice(0, 5).map((id) => pictureOf(id).catch(() => null)));
  const known = images.filter(Boolean);
  const title = of.like.length === 1 && known.length ? `More like ${nameOf(known[0])}` : `More like ${of.like.length} pictures`;
  const words = make("div", {}, make("h2", {}, title), make("p", {}, "Nearest first."));
  const small = known.map((picture) => {
    const button = make("button", { class: "small", type: "button", "aria-label": `Open ${nameOf(picture)}` }, thumbnail(picture));
    button.addEventListener("click", () => open(picture));
    return button;
  });
  return [make("div", { class: "asked" }, ...small, words)];
}

/* more of a list */

const nearEnd = () => scrollY + innerHeight > document.documentElement.scrollHeight - AHEAD;
addEventListener("scroll", () => moreTiles(), { passive: true });
addEventListener("resize", () => moreTiles());

/** Ask for the next page of a gallery if its end is near. */
async function moreTiles() {
  const now = shown;
  if (!now || now.view !== "gallery" || now.listing.done || now.loading || now.stopped || !nearEnd()) return;
  now.loading = new AbortController();
  try {
    const hits = await now.listing.more(now.loading.signal);
    if (now === shown) now.board.add(hits);
  } catch (error) {
    now.stopped = error;
  }
  now.loading = null;
  if (now !== shown) return;
  showEnd();
  moreTiles();
}

function showEnd() {
  const { listing, stopped } = shown;
  if (stopped) {
    const button = make("button", { class: "plain", type: "button" }, "Try again");
    button.addEventListener("click", () => {
      shown.stopped = null;
      moreTiles();
    });
    at("end").replaceChildren(make("p", { class: "end" }, `The next pictures did not come: ${stopped.message} `, button));
  } else if (!listing.done) at("end").replaceChildren(make("p", { class: "end" }, "Loading more…"));
  else if (listing.hits.length > 1) {
    at("end").replaceChildren(make("p", { class: "end" }, `${listing.hits.length.toLocaleString()} pictures`));
  } else at("end").replaceChildren();
}

/** Show ten more ranks of both rankings. */
async function moreRows() {
  const { listing, board } = shown;
  const from = shown.rows;
  const to = (shown.rows = from + ROWS);
  if (listing.hits.length < to && !listing.done && from) {
    if (!(await work((signal) => listing.more(signal)))) return;
  }
  board.add(listing.hits.slice(from, to), listing.firstStage.slice(from, to));
  if (from) board.right.children[from]?.firstChild.focus();
  at("end").replaceChildren();
  if (listing.done && listing.hits.length <= to) return;
  const button = make("button", { class: "plain", type: "button" }, "Show ten more");
  button.addEventListener("click", moreRows);
  at("end").replaceChildren(make("div", { class: "more" }, button));
}

/* the open image */

const known = new Map();

function inList(id) {
  const hits = shown?.listing.hits || [];
  return [...hits, ...(shown?.listing.firstStage || [])].find((hit) => hit.image_id === id);
}

async function pictureOf(id) {
  const found = inList(id) || known.get(id);
  if (found) return found;
  const picture = await get(`/v1/images/${encodeURIComponent(id)}`);
  known.set(id, picture);
  return picture;
}

function open(picture) {
  if (!inList(picture.image_id)) known.set(picture.image_id, picture);
  router.go({ open: picture.image_id });
}

async function showOpen() {
  const id = state().open;
  if (!id) {
    const before = detail.picture?.image_id;
    detail.close();
    if (before) shown?.board.focus?.(before);
    return;
  }
  try {
    const picture = await pictureOf(id);
    if (state().open !== id) return;
    const hits = shown.listing.hits;
    const place = hits.findIndex((hit) => hit.image_id === id);
    const alone = place < 0;
    detail.open(picture, {
      first: alone || place === 0,
      last: alone || (place === hits.length - 1 && shown.listing.done),
    });
  } catch (error) {
    detail.close();
    fail(error);
  }
}

/** Open the next image of the list, or the one before. */
async function step(by) {
  const { listing, board, view } = shown;
  const place = listing.hits.findIndex((hit) => hit.image_id === state().open);
  if (place < 0) return;
  if (!listing.hits[place + by] && by > 0 && !listing.done) {
    const hits = await listing.more().catch(() => []);
    if (view === "gallery" && shown?.board === board) board.add(hits);
  }
  const next = listing.hits[place + by];
  if (next) router.go({ open: next.image_id }, { replace: true });
}

/* wiring */

/** Read what the service serves, once it answers. */
async function describe(signal) {
  info = await get("/v1/collection", { signal });
  const count = make("b", {}, `${info.pictures.toLocaleString()} pictures`);
  at("collection").replaceChildren(count, ` in ${info.name}`);
  at("key-button").hidden = !hasKey();
  at("add").hidden = at("drop-add").hidden = !info.ingest;
  showModelNote(at("model-note"), info);
  showForm();
}

function again() {
  listings.clear();
  shown = null;
  router.load();
}

async function searchBy(file) {
  router.ask({ sent: await keep(file) });
}

at("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  router.ask({ filters: [] });
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (text === state().text && kindOf(state()) === "text") listings.delete(listKey(state())); // ask again
  shown = null;
  router.ask({ text });
});
for (const button of at("views").children) {
  button.addEventListener("click", () => router.go({ view: button.dataset.view }));
}
at("by-words").addEventListener("click", () => router.go({ words: !state().words, open: "" }));
at("candidates").addEventListener("input", () => (at("candidates-value").textContent = `${chosenCandidates()}`));
at("candidates").addEventListener("change", () => router.go({ candidates: chosenCandidates() }));
at("budget").addEventListener("input", () => {
  const ms = chosenBudget();
  at("budget-value").textContent = ms === null ? "none" : `${ms} ms`;
});
at("budget").addEventListener("change", () => router.go({ budget: chosenBudget() }));
at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) searchBy(file);
  event.target.value = "";
});
at("add-files").addEventListener("change", (event) => {
  uploads.add([...event.target.files]);
  event.target.value = "";
});
at("key-form").addEventListener("submit", () => {
  setKey(at("key-input").value.trim());
  at("key-input").value = "";
  at("key-button").hidden = !hasKey();
  again();
});
at("key-button").addEventListener("click", () => at("key").showModal());

addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range";
  const inDialog = document.querySelector("dialog[open]");
  if (event.key === "/" && !typing && !inDialog) {
    event.preventDefault();
    at("text").focus();
    at("text").select();
  } else if (event.key === "Escape" && !inDialog && picked.busy) picked.clear();
  else if (event.key === "ArrowDown" && event.target === at("text")) {
    const first = results.querySelector(".right .hit, .tile .open");
    if (first) {
      event.preventDefault();
      first.focus();
    }
  }
});

/* drop */

let over = 0;
const carriesFile = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
const overlay = (by) => {
  over = Math.max(0, over + by);
  at("drop").hidden = over === 0;
};
addEventListener("dragenter", (event) => carriesFile(event) && overlay(1));
addEventListener("dragleave", (event) => carriesFile(event) && overlay(-1));
addEventListener("dragover", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  for (const zone of at("drop").children) zone.classList.toggle("on", zone === event.target);
});
addEventListener("drop", (event) => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  overlay(-over);
  const files = [...event.dataTransfer.files];
  // Several pictures can only be added.
  if (info?.ingest && (event.target.dataset?.drop === "add" || files.length > 1)) uploads.add(files);
  else if (files.length) searchBy(files[0]);
});

router.load();
// On a phone, a keyboard would cover the pictures.
if (kindOf(state()) === "home" && !state().open && matchMedia("(hover: hover)").matches) at("text").focus();
