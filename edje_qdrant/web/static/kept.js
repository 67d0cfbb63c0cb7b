// Images that were searched by, kept in this browser so that Back and reload can search again.

const STORE = "images";
const MOST_HOURS = 24;
const known = new Map();

function database() {
  return new Promise((done, failed) => {
    const request = indexedDB.open("edje", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
}

function finished(request) {
  return new Promise((done, failed) => {
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
}

async function dropOld(store) {
  const oldest = Date.now() - MOST_HOURS * 3_600_000;
  for (const key of await finished(store.getAllKeys())) {
    if (Number.parseInt(key, 36) < oldest) store.delete(key);
  }
}

/** Keep a file, and return its key for the address. */
export async function keep(file) {
  const number = crypto.getRandomValues(new Uint32Array(1))[0];
  const key = `${Date.now().toString(36)}-${number.toString(36)}`;
  known.set(key, file);
  try {
    const store = (await database()).transaction(STORE, "readwrite").objectStore(STORE);
    await finished(store.put(file, key));
    await dropOld(store);
  } catch {
    // Without a database, as in some private windows, it is kept until the page is left.
  }
  return key;
}

/** Return a kept file, or null. */
export async function kept(key) {
  if (known.has(key)) return known.get(key);
  try {
    const store = (await database()).transaction(STORE).objectStore(STORE);
    return (await finished(store.get(key))) || null;
  } catch {
    return null;
  }
}
