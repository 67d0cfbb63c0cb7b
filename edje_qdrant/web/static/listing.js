// The images of one state, page by page: of a search, or of the whole collection.

import { kept } from "/static/kept.js";
import { kindOf } from "/static/router.js";
import { get, post, ServiceError, upload } from "/static/service.js";

export const PAGE = 40;

// Milliseconds for the first answer to a text. On a slow machine it ranks fewer candidates; the others
// are ranked right after it.
const FIRST_ANSWER = 1000;
// The first stage alone is quick.
const SIMILAR = 400;

export class Listing {
  /**
   * A list of the state; nothing is asked for before `more`. `info` describes the service; `whole`
   * says to wait until all candidates are ranked, however long it takes.
   */
  constructor(state, info, { whole = false } = {}) {
    this.state = state;
    this.whole = whole;
    this.partial = false; // whether the first answer came before all candidates were ranked
    this.kind = kindOf(state);
    this.info = info;
    this.page = Math.min(PAGE, info.max_top_k);
    this.hits = [];
    this.firstStage = [];
    this.answer = null; // the first one
    this.cursor = null;
    this.done = false;
  }

  /** Ask for the next page; return its images. */
  async more(signal) {
    if (this.done) return [];
    const answer = this.answer && this.kind !== "home" ? await this.next(signal) : await this[this.kind](signal);
    const before = new Set(this.hits.map((hit) => hit.image_id));
    const found = (answer.hits || answer.pictures).filter((hit) => !before.has(hit.image_id));
    this.answer ||= answer;
    this.firstStage = this.answer.first_stage || [];
    this.cursor = answer.cursor || null;
    this.done = this.cursor === null;
    this.hits.push(...found);
    return found;
  }

  next(signal) {
    return post("/v1/search/next", { cursor: this.cursor, top_k: this.page }, { signal });
  }

  home(signal) {
    const parts = new URLSearchParams({ limit: `${this.page}` });
    if (this.cursor) parts.set("cursor", this.cursor);
    for (const condition of this.state.filters) parts.append("where", condition);
    return get(`/v1/images?${parts}`, { signal });
  }

  async text(signal) {
    const { text, candidates, budget, filters, words } = this.state;
    const wanted = Math.min(this.info.max_candidates, candidates ?? this.info.num_candidates);
    const own = budget === null && !this.whole;
    const body = {
      text,
      top_k: Math.min(this.page, wanted),
      num_candidates: wanted,
      budget_ms: own ? FIRST_ANSWER : budget,
      where: filters,
      on_missing: "first_stage",
      hybrid: words && this.info.text_fields.length > 0,
      // The comparison shows the rankings as they are.
      first_stage: this.state.view === "compare",
      collapse_duplicates: this.state.view !== "compare",
    };
    const answer = await post("/v1/search", body, { signal });
    this.partial = own && answer.degraded && /^the budget of /.test(answer.reason);
    return answer;
  }

  like(signal) {
    const { like, filters } = this.state;
    const wanted = Math.min(this.info.max_candidates, SIMILAR);
    const body = { liked: like, top_k: this.page, num_candidates: wanted, where: filters, collapse_duplicates: true };
    return post("/v1/recommend", body, { signal });
  }

  async sent(signal) {
    const file = await kept(this.state.sent);
    if (!file) {
      throw new ServiceError(0, {
        message: "The picture of this search was kept only in the browser that sent it, for a day. Drop it here again.",
      });
    }
    if (file.size > this.info.max_upload_bytes) {
      throw new ServiceError(413, { message: `The picture has more than ${this.info.max_upload_bytes >> 20} MB.` });
    }
    this.file = file;
    const form = new FormData();
    form.append("file", file);
    form.append("top_k", `${this.page}`);
    form.append("collapse_duplicates", "true");
    for (const condition of this.state.filters) form.append("where", condition);
    return upload("/v1/search/image", form, { signal });
  }
}
