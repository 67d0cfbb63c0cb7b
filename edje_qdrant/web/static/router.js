// The page's state, its address, and its history entries.

const SCROLLS = "edje-scrolls";
const VIEW = "edje-view";
const WORDS = "edje-words";
const VIEWS = ["gallery", "compare"];

/**
 * What the page shows.
 *
 * text: what is searched for; like: ids of images to find similar ones to; sent: key of an image
 * kept in `kept.js`. With none of the three it is the whole collection. filters: texts, as typed.
 * words: whether a text is also compared with the words of captions and names. candidates, budget:
 * null for the default. open: id of the image that is open.
 */
const HOME = {
  text: "", like: [], sent: "", filters: [], view: "gallery", words: false, candidates: null,
  budget: null, open: "",
};

/** Return the kind of a state's list. */
export const kindOf = (state) =>
  state.text ? "text" : state.like.length ? "like" : state.sent ? "sent" : "home";

/** Return a text that is the same for states with the same list. */
export function listKey(state) {
  const { text, like, sent, filters, words, candidates, budget } = state;
  return JSON.stringify([text, like, sent, filters, candidates, budget, text && [words, state.view]]);
}

function count(text) {
  return /^[1-9]\d{0,6}$/.test(text || "") ? Number(text) : null;
}

/** Return the state that an address names. */
export function read(search) {
  const parts = new URLSearchParams(search);
  const text = (parts.get("q") || "").trim();
  const like = text ? [] : parts.getAll("like");
  const named = parts.get("view");
  return {
    text,
    like,
    sent: text || like.length ? "" : parts.get("sent") || "",
    filters: parts.getAll("f"),
    view: VIEWS.includes(named) ? named : rememberedView(),
    words: text ? parts.get("words") === "1" : rememberedWords(),
    candidates: count(parts.get("c")),
    budget: count(parts.get("b")),
    open: parts.get("open") || "",
  };
}

/** Return the address of a state. */
export function addressOf(state) {
  const parts = new URLSearchParams();
  if (state.text) parts.set("q", state.text);
  for (const id of state.like) parts.append("like", id);
  if (state.sent) parts.set("sent", state.sent);
  for (const filter of state.filters) parts.append("f", filter);
  if (state.text) {
    // Named, so that others see the same view, whichever they used last.
    parts.set("view", state.view);
    if (state.words) parts.set("words", "1");
    if (state.candidates !== null) parts.set("c", state.candidates);
    if (state.budget !== null) parts.set("b", state.budget);
  }
  if (state.open) parts.set("open", state.open);
  return parts.size ? `/?${parts}` : "/";
}

function rememberedView() {
  const view = localStorage.getItem(VIEW);
  return VIEWS.includes(view) ? view : "gallery";
}

const rememberedWords = () => localStorage.getItem(WORDS) === "1";

export class Router {
  /**
   * `render(state, place)` shows a state; `place` is where its page was scrolled to, null for a
   * state that is new.
   */
  constructor(render) {
    this.render = render;
    this.state = { ...HOME, view: rememberedView(), words: rememberedWords() };
    history.scrollRestoration = "manual";
    addEventListener("popstate", () => this.load());
    addEventListener("scroll", () => this.scrolled(), { passive: true });
  }

  /** Show the state of the address: at the start, and after Back and Forward. */
  load() {
    this.state = read(location.search);
    if (!history.state?.entry) history.replaceState(this.entry(false), "");
    this.render(this.state, places()[history.state.entry] ?? null);
  }

  /** Change the state; by default with a new history entry. */
  go(change, { replace = false } = {}) {
    const before = this.state;
    this.state = { ...before, ...change };
    if ("view" in change) localStorage.setItem(VIEW, change.view);
    if ("words" in change) localStorage.setItem(WORDS, change.words ? "1" : "");
    const address = addressOf(this.state);
    if (replace || address === addressOf(before)) {
      history.replaceState(history.state, "", address);
    } else {
      // An image that was opened from a list is closed by going back to the list.
      keepPlace(history.state?.entry);
      history.pushState(this.entry(Boolean(this.state.open) && !before.open), "", address);
      if (this.state.open) keepPlace(history.state.entry); // the list behind it stays
    }
    this.render(this.state, null);
  }

  /** Search for something else, with the filters that are set. */
  ask(query) {
    this.go({ text: "", like: [], sent: "", open: "", ...query });
  }

  /** Close the open image. */
  shut() {
    if (!this.state.open) return;
    if (history.state?.over) history.back();
    else this.go({ open: "" }, { replace: true });
  }

  entry(over) {
    return { entry: `${Date.now()}-${Math.random()}`, over };
  }

  scrolled() {
    clearTimeout(this.waiting);
    const entry = history.state?.entry;
    this.waiting = setTimeout(() => entry === history.state?.entry && keepPlace(entry), 80);
  }
}

/** Remember how far down the page of a history entry is. */
function keepPlace(entry) {
  const kept = Object.entries({ ...places(), [entry]: Math.round(scrollY) }).slice(-100);
  sessionStorage.setItem(SCROLLS, JSON.stringify(Object.fromEntries(kept)));
}

function places() {
  try {
    return JSON.parse(sessionStorage.getItem(SCROLLS)) || {};
  } catch {
    return {};
  }
}
