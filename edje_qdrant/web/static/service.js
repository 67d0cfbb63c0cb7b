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

async function send(url, options = {}) {
  const headers = new Headers(options.headers);
  if (hasKey()) headers.set("Authorization", `Bearer ${sessionStorage.getItem(KEY)}`);
  let response;
  try {
    response = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, { message: "The service cannot be reached. Is it still running?" });
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
  return decode(await (await send(url, options)).text());
}

export async function post(url, body, options) {
  const headers = { "Content-Type": "application/json" };
  const sent = { ...options, method: "POST", headers, body: encode(body) };
  return decode(await (await send(url, sent)).text());
}

export async function upload(url, form, options) {
  return decode(await (await send(url, { ...options, method: "POST", body: form })).text());
}

/** Show an image of the service; a key needs a header, which `src` cannot send. */
export async function show(image, url) {
  if (!hasKey()) {
    image.src = url;
    return;
  }
  try {
    const blob = await (await send(url)).blob();
    const place = URL.createObjectURL(blob);
    image.addEventListener("load", () => URL.revokeObjectURL(place), { once: true });
    image.src = place;
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}
