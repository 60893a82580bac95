// The drawing of this tab, kept in the browser's own database, so that a reload has it again. Pictures are too large for
// localStorage. The drawing lies under the tab's name beside its picture and files, which are written when they change.

import { model, onChange, snapshot } from "./model.js";
import { sometimes } from "./server.js";
import { allSettings, onSetting } from "./settings.js";

const MOST_TABS = 4; // whose drawings are kept; the oldest make room
const STORE = "tabs";
let written = {}; // picture and files that are in the database

function tabName() {
  try {
    return (sessionStorage.tab ||= crypto.randomUUID()); // a reload keeps it, another tab has its own
  } catch {
    return null; // the browser keeps nothing for this page
  }
}
const tab = tabName();

const finished = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = request.oncomplete = () => resolve(request.result);
    request.onerror = request.onabort = () => reject(request.error);
  });

const database = (async () => {
  const request = indexedDB.open("remoco", 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE);
  return finished(request);
})().catch(() => null);

export async function kept() {
  const db = await database;
  if (!db || !tab) return null;
  try {
    const store = db.transaction(STORE).objectStore(STORE);
    const [state, large] = await Promise.all([finished(store.get(`${tab}/drawing`)), finished(store.get(`${tab}/files`))]);
    if (!state || !large) return null;
    written = large;
    return { url: large.url, settings: state.settings, state: { ...state.drawing, scene: { ...state.drawing.scene, files: large.files } } };
  } catch {
    return null;
  }
}

async function write() {
  const db = await database;
  if (!db || !tab) return;
  const { image, scene, ...drawing } = snapshot();
  const { files, ...moves } = scene;
  const transaction = db.transaction(STORE, "readwrite");
  const store = transaction.objectStore(STORE);
  const large = image ? { url: image.url, files } : {};
  if (!image) {
    store.delete(`${tab}/drawing`);
    store.delete(`${tab}/files`);
  } else {
    store.put({ when: Date.now(), drawing: { ...drawing, scene: moves }, settings: allSettings() }, `${tab}/drawing`);
    if (written.url !== large.url || written.files !== files) store.put(large, `${tab}/files`);
  }
  await finished(transaction);
  written = large; // where there was no room for them, the next change tries again
}

// the drawings of the tabs that were used last stay
async function prune() {
  const db = await database;
  if (!db) return;
  const store = db.transaction(STORE, "readwrite").objectStore(STORE);
  const keys = (await finished(store.getAllKeys())).filter((key) => key.endsWith("/drawing") && key !== `${tab}/drawing`);
  const found = await Promise.all(keys.map(async (key) => [(await finished(store.get(key))).when, key]));
  const old = found.sort(([a], [b]) => b - a).slice(MOST_TABS - 1);
  for (const [, key] of old) for (const each of [key, key.replace("/drawing", "/files")]) store.delete(each);
}

export const keep = sometimes(100, () => write().catch(() => null)); // a full disk keeps nothing, and hinders nobody
onChange((quietly) => !quietly && (model.image || written.url) && keep());
onSetting(() => model.image && keep());
prune().catch(() => null);
