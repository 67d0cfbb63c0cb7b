// The filters: chips with what is wrong with them, and an input that is completed from the payloads.

import { equals, filterWords, readFilter } from "/static/filters.js";
import { cross, make } from "/static/parts.js";
import { get, post } from "/static/service.js";

const at = (id) => document.getElementById(id);
const KEPT = 30_000; // milliseconds, as long as the service keeps its sample
const MOST_FIELDS = 40;
const MOST_VALUES = 12;

const KINDS = {
  keyword: "text", integer: "number", float: "number", bool: "yes or no", datetime: "date", geo: "place",
};
/** What to write after a field, and an example for what follows. */
const HINTS = {
  datetime: { sign: ">=", example: "2024-06-01" },
  float: { sign: ">=", example: "0.5" },
  geo: { sign: "~", example: "latitude,longitude,metres" },
};

/** The kind that says most of a field: dates and places are more than text. */
function kindOf(field) {
  return ["geo", "datetime", "bool", "float", "integer", "keyword"].find((kind) => field.kinds.includes(kind)) || "keyword";
}

export class FilterBox {
  /** `filters()` returns the conditions that are set, `change(filters)` sets others. */
  constructor({ filters, change }) {
    this.filters = filters;
    this.change = change;
    this.input = at("filter");
    this.list = at("filter-list");
    this.checked = new Map(); // condition -> what is wrong with it, or null
    this.options = [];
    this.active = -1;
    this.input.addEventListener("input", () => this.suggest());
    this.input.addEventListener("focus", () => this.suggest());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => {
      this.close();
      this.add();
    });
    this.list.addEventListener("mousedown", (event) => event.preventDefault()); // the input keeps the focus
    this.list.addEventListener("click", (event) => {
      const item = event.target.closest("[role=option]");
      if (item) this.choose(this.options[[...this.list.children].indexOf(item)]);
    });
  }

  /** Forget what is known of the collection. */
  forget() {
    this.checked.clear();
    this.fields = null;
  }

  /** Show the conditions that are set. */
  show() {
    const filters = this.filters();
    const chips = filters.map((text, place) => {
      const [field, words] = filterWords(text);
      const wrong = this.checked.get(text);
      const chip = make(
        "button",
        { class: wrong ? "chip wrong" : "chip", type: "button", "aria-label": `Remove the filter ${text}` },
        make("span", {}, make("b", {}, `${field} `), words),
        cross(),
      );
      if (wrong) chip.title = wrong.message;
      chip.addEventListener("click", () => {
        this.change(filters.filter((_, other) => other !== place));
        this.input.focus();
      });
      return make("li", {}, chip);
    });
    at("chips").replaceChildren(...chips);
    const lines = filters.filter((text) => this.checked.get(text)).map((text) => this.line(text, this.checked.get(text)));
    at("filter-problems").replaceChildren(...lines);
    this.check(filters.filter((text) => !this.checked.has(text)));
  }

  /** What is wrong with a condition, and a button that mends it. */
  line(text, problem) {
    const said = problem.message.charAt(0).toUpperCase() + problem.message.slice(1);
    const line = make("p", {}, make("b", {}, text), `${said}.`.replace(/([?.])\.$/, "$1"));
    if (problem.nearest) {
      const { sign, value } = readFilter(text);
      const better = `${problem.nearest}${sign}${value}`;
      const button = make("button", { class: "quiet", type: "button" }, `Use ${better}`);
      button.addEventListener("click", () => this.change(this.filters().map((other) => (other === text ? better : other))));
      line.append(button);
    }
    return line;
  }

  async check(where) {
    if (!where.length) return;
    for (const text of where) this.checked.set(text, null);
    try {
      const { problems } = await post("/v1/filter/check", { where });
      for (const problem of problems) this.checked.set(problem.where, problem);
      if (problems.length) this.show();
    } catch {
      // The search itself says what is wrong.
      for (const text of where) this.checked.delete(text);
    }
  }

  add() {
    const text = this.input.value.trim();
    const read = text ? readFilter(text) : null;
    this.input.setAttribute("aria-invalid", `${Boolean(text) && !read}`);
    if (!read) return;
    this.input.value = "";
    this.close();
    if (!this.filters().includes(text)) this.change([...this.filters(), text]);
  }

  /* completion */

  async known() {
    if (!this.fields || Date.now() > this.fields.until) {
      const answer = await get("/v1/fields");
      this.fields = { list: answer.fields, until: Date.now() + KEPT, values: new Map() };
    }
    return this.fields;
  }

  async valuesOf(name) {
    const fields = await this.known();
    if (!fields.values.has(name)) {
      fields.values.set(name, await get(`/v1/fields/values?field=${encodeURIComponent(name)}`));
    }
    return fields.values.get(name);
  }

  async suggest() {
    const asked = (this.asked = Symbol("asked"));
    let options = [];
    try {
      options = await this.optionsFor(this.input.value);
    } catch {
      // Without completion the input still works.
    }
    if (this.asked === asked && document.activeElement === this.input) this.open(options);
  }

  async optionsFor(text) {
    const { list } = await this.known();
    const [, typed, sign = "", rest = ""] = /^\s*([^=<>~]*?)\s*(?:(>=|<=|=|>|<|~)\s*([^]*))?$/.exec(text);
    if (!sign) {
      const wanted = typed.toLowerCase();
      const ranked = list
        .filter(({ name }) => name.toLowerCase().includes(wanted))
        .sort((a, b) => b.name.toLowerCase().startsWith(wanted) - a.name.toLowerCase().startsWith(wanted));
      return ranked.slice(0, MOST_FIELDS).map((field) => {
        const kind = kindOf(field);
        return { label: field.name, more: KINDS[kind], insert: `${field.name}${HINTS[kind]?.sign || "="}` };
      });
    }
    const field = list.find(({ name }) => name === typed);
    if (!field) return [];
    const kind = kindOf(field);
    if (sign !== "=") {
      const example = HINTS[kind]?.example || "2020";
      return rest ? [] : [{ label: example, more: "for example", insert: null }];
    }
    if (["geo", "float"].includes(kind)) return [];
    const { values, counted } = await this.valuesOf(typed);
    const wanted = rest.replace(/^"|"$/g, "").toLowerCase();
    return values
      .filter(({ value }) => `${value}`.toLowerCase().includes(wanted))
      .slice(0, MOST_VALUES)
      .map(({ value, images }) => ({ label: `${value}`, more: counted ? images.toLocaleString() : "", filter: equals(typed, value) }));
  }

  open(options) {
    this.options = options;
    this.active = -1;
    const items = options.map(({ label, more, insert, filter }, place) => {
      const words = [make("span", {}, label), make("small", {}, more)];
      if (insert === null && !filter) return make("li", { class: "hint", role: "presentation" }, ...words);
      return make("li", { role: "option", id: `filter-option-${place}`, "aria-selected": "false" }, ...words);
    });
    this.list.replaceChildren(...items);
    this.list.hidden = !items.length;
    this.list.scrollTop = 0;
    this.input.setAttribute("aria-expanded", `${Boolean(items.length)}`);
    this.input.removeAttribute("aria-activedescendant");
  }

  close() {
    this.asked = null; // options that are still awaited come too late
    this.open([]);
  }

  choose(option) {
    if (option.filter) {
      this.input.value = option.filter;
      this.add();
      return;
    }
    this.input.value = option.insert;
    this.suggest();
  }

  move(by) {
    const items = [...this.list.querySelectorAll("[role=option]")];
    if (!items.length) return;
    this.active = (this.active + by + items.length + (this.active < 0 && by < 0 ? 1 : 0)) % items.length;
    items.forEach((item, place) => item.setAttribute("aria-selected", `${place === this.active}`));
    items[this.active].scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", items[this.active].id);
  }

  key(event) {
    const shown = !this.list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (shown) this.move(event.key === "ArrowDown" ? 1 : -1);
      else this.suggest();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (shown && this.active >= 0) this.choose(this.options[this.active]);
      else this.add();
    } else if (event.key === "Escape" && shown) {
      event.stopPropagation();
      this.close();
    }
  }
}
