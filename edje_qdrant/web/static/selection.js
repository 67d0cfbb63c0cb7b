// The images that are selected, and what can be done with all of them.

import { make } from "/static/parts.js";
import { download } from "/static/service.js";

const MEGABYTE = 1_000_000;
const at = (id) => document.getElementById(id);

export class Selection {
  /** `changed()` is called after each change; `like(ids)` searches for similar images. */
  constructor({ changed, like, failed }) {
    this.pictures = new Map();
    this.choosing = false; // whether a click on an image selects it
    this.last = null; // id of the image that was selected last
    this.changed = changed;
    this.failed = failed;
    at("picked-clear").addEventListener("click", () => this.clear());
    at("picked-like").addEventListener("click", () => {
      const ids = [...this.pictures.keys()];
      this.clear();
      like(ids);
    });
    at("picked-paths").addEventListener("click", () => this.paths());
    at("picked-zip").addEventListener("click", () => this.zip());
    at("choose").addEventListener("click", () => this.choose(!this.choosing));
  }

  has(id) {
    return this.pictures.has(id);
  }

  add(picture) {
    this.pictures.set(picture.image_id, picture);
    this.show();
  }

  toggle(picture) {
    if (!this.pictures.delete(picture.image_id)) this.pictures.set(picture.image_id, picture);
    this.show();
  }

  choose(is) {
    this.choosing = is;
    if (!is) this.pictures.clear();
    this.show();
  }

  clear() {
    this.running?.abort();
    this.choose(false);
  }

  get busy() {
    return this.choosing || this.pictures.size > 0;
  }

  show() {
    const { size } = this.pictures;
    if (size) this.choosing = true;
    at("picked").hidden = !this.choosing;
    document.body.classList.toggle("choosing", this.choosing);
    at("choose").setAttribute("aria-pressed", `${this.choosing}`);
    at("picked-count").textContent = size ? `${size.toLocaleString()} selected` : "Select pictures";
    for (const id of ["picked-zip", "picked-paths", "picked-like"]) at(id).disabled = !size;
    this.changed();
  }

  /** Save the paths of the images, one a line. */
  paths() {
    const lines = [...this.pictures.values()].map(({ image_id: id, payload }) => {
      const { path } = payload;
      if (typeof path !== "string") return id;
      return /[\r\n]/.test(path) ? JSON.stringify(path) : path;
    });
    save(new Blob([`${lines.join("\n")}\n`], { type: "text/plain" }), "pictures.txt");
  }

  /** Save the files of the images as one zip file. */
  async zip() {
    this.running = new AbortController();
    const count = at("picked-count");
    at("picked-zip").disabled = true;
    try {
      const ids = [...this.pictures.keys()];
      const told = (bytes) => (count.textContent = `${(bytes / MEGABYTE).toFixed(1)} MB received`);
      const blob = await download("/v1/images/zip", { image_ids: ids }, told, { signal: this.running.signal });
      save(blob, "pictures.zip");
    } catch (error) {
      this.failed(error);
    }
    this.show();
  }
}

function save(blob, name) {
  const href = URL.createObjectURL(blob);
  const link = make("a", { href, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
