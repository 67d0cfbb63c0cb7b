// Adding images to the collection: in several requests, with progress.

import { make } from "/static/parts.js";
import { send as request } from "/static/service.js";

const at = (id) => document.getElementById(id);
// Small enough for a bar that moves; each request holds a few images.
const BATCH_BYTES = 8 << 20;
const MOST_REASONS = 20;

export class Uploads {
  /** `added(since)` shows what was added; `since` is when the first of it was, by the service's clock. */
  constructor({ limits, added }) {
    this.limits = limits;
    this.added = added;
    this.waiting = [];
    at("upload-close").addEventListener("click", () => this.close());
    at("upload-show").addEventListener("click", () => {
      this.close();
      this.added(this.since);
    });
  }

  /** Send files; more may be added while some are under way. */
  async add(files) {
    const fresh = !this.running;
    if (fresh) Object.assign(this, { total: 0, done: 0, counts: { added: 0, updated: 0, skipped: 0 }, failed: [], since: "" });
    this.total += files.length;
    this.waiting.push(...files);
    if (fresh) this.running = new AbortController();
    this.show(0);
    if (!fresh) return;
    while (this.waiting.length && !this.running.signal.aborted) await this.batch();
    this.running = null;
    this.waiting = [];
    this.show(0);
  }

  async batch() {
    const { max_files: most, max_upload_bytes: largest } = this.limits();
    const files = [];
    let bytes = 0;
    while (this.waiting.length && files.length < most && (!files.length || bytes + this.waiting[0].size < BATCH_BYTES)) {
      const file = this.waiting.shift();
      if (file.size + 4096 > largest) {
        this.failed.push({ name: file.name, reason: `it has more than ${largest >> 20} MB` });
        this.done += 1;
        continue;
      }
      files.push(file);
      bytes += file.size;
    }
    if (files.length) await this.send(files);
  }

  async send(files) {
    const form = new FormData();
    for (const file of files) form.append("files", file);
    try {
      const moved = (share) => this.show(share * files.length);
      const answer = await request("/v1/ingest", form, moved, this.running.signal);
      if (answer.added) this.since ||= answer.since;
      for (const kind of Object.keys(this.counts)) this.counts[kind] += answer[kind];
      this.failed.push(...answer.failed);
    } catch (error) {
      if (error.name !== "AbortError") {
        this.failed.push(...files.map(({ name }) => ({ name, reason: error.message })));
      }
    }
    this.done += files.length;
    this.show(0);
  }

  /** Show how many are done; `sent` of the ones under way, as a share, have left. */
  show(sent) {
    const { added, updated, skipped } = this.counts;
    const parts = [];
    if (added) parts.push(`${added.toLocaleString()} added`);
    if (skipped + updated) parts.push(`${(skipped + updated).toLocaleString()} there already`);
    if (this.failed.length) parts.push(`${this.failed.length.toLocaleString()} not added`);
    const stopped = !this.running && this.done < this.total;
    at("upload").hidden = false;
    at("upload-title").textContent = this.running
      ? `Adding pictures: ${this.done.toLocaleString()} of ${this.total.toLocaleString()}`
      : stopped ? "Stopped" : "Done";
    at("upload-counts").textContent = parts.join(", ") || "Sending…";
    at("upload-bar").value = this.total ? (this.done + sent * 0.9) / this.total : 0;
    at("upload-bar").hidden = !this.running;
    const reasons = this.failed.slice(0, MOST_REASONS).map(({ name, reason }) => make("li", {}, make("b", {}, name), ` ${reason}`));
    at("upload-failed").replaceChildren(...reasons);
    at("upload-show").hidden = Boolean(this.running) || !added;
    at("upload-close").setAttribute("aria-label", this.running ? "Stop adding pictures" : "Close");
  }

  close() {
    if (this.running) this.running.abort();
    else at("upload").hidden = true;
  }
}
