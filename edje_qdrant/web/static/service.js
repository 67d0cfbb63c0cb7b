// Requests to the service, with this tab's key if there is one.

const KEY = "edje-key";

export class ServiceError extends Error {
  constructor(status, body) {
    super(body.message || "the service did not answer");
    this.status = status;
    this.requestId = body.request_id || "";
  }
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/* Whole numbers that a JavaScript number would round are BigInt here, digit by digit. */

function decode(text) {
  return JSON.parse(text, (key, value, context) => {
    if (typeof value !== "number" || Number.isSafeInteger(value)) return value;
    return /^-?\d+$/.test(context?.source) ? BigInt(context.source) : value;
  });
}

export function encode(value) {
  return JSON.stringify(value, (key, each) => {
    if (typeof each !== "bigint") return each;
    return JSON.rawJSON ? JSON.rawJSON(`${each}`) : `${each}`; // older browsers send it as text
  });
}

const unreachable = () =>
  new ServiceError(0, { message: "The service cannot be reached. Is it still running?" });

async function ask(url, options = {}) {
  const headers = new Headers(options.headers);
  if (hasKey()) headers.set("Authorization", `Bearer ${sessionStorage.getItem(KEY)}`);
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // a proxy may answer without JSON
  }
  throw new ServiceError(response.status, body);
}

export async function get(url, options) {
  return decode(await (await ask(url, options)).text());
}

export async function post(url, body, options) {
  const headers = { "Content-Type": "application/json" };
  const sent = { ...options, method: "POST", headers, body: encode(body) };
  return decode(await (await ask(url, sent)).text());
}

export async function upload(url, form, options) {
  return decode(await (await ask(url, { ...options, method: "POST", body: form })).text());
}

/** Send a form; `moved(share)` is told how much of it has left. */
export function send(url, form, moved, signal) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much has left
    request.open("POST", url);
    if (hasKey()) request.setRequestHeader("Authorization", `Bearer ${sessionStorage.getItem(KEY)}`);
    request.upload.onprogress = (event) => event.total && moved(event.loaded / event.total);
    request.onabort = () => failed(new DOMException("stopped", "AbortError"));
    request.onerror = () => failed(unreachable());
    request.onload = () => {
      let body = {};
      try {
        body = decode(request.responseText);
      } catch {
        // a proxy may answer without JSON
      }
      if (request.status >= 200 && request.status < 300) done(body);
      else failed(new ServiceError(request.status, body));
    };
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** Ask for a file; `told(bytes)` is called as it comes. */
export async function download(url, body, told, options) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask(url, { ...options, method: "POST", headers, body: encode(body) });
  const parts = [];
  let bytes = 0;
  const reader = response.body.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    parts.push(value);
    told((bytes += value.length));
  }
  return new Blob(parts, { type: response.headers.get("Content-Type") });
}

/** Show an image of the service; a key needs a header, which `src` cannot send. */
export async function show(image, url) {
  if (!hasKey()) {
    image.src = url;
    return;
  }
  try {
    const blob = await (await ask(url)).blob();
    const place = URL.createObjectURL(blob);
    image.addEventListener("load", () => URL.revokeObjectURL(place), { once: true });
    image.src = place;
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}
