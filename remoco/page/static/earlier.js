// The results of this tab: the one that is shown, the strip of earlier ones, comparing two, and going back to the inputs
// of one. They lie in memory, bounded, and end with the tab.

import { restore } from "./model.js";
import { replaced } from "./opening.js";
import { $, copyOf } from "./server.js";
import { setAll } from "./settings.js";

const MOST = 12;
const MOST_BYTES = 128 * 2 ** 20; // of their videos and inputs together
const root = $(".rm-result");
const beside = $(".rm-beside");
const results = []; // the newest first: {number, about, settings, state, aspect, clip, strip, bytes}
let [shown, other, count] = [null, null, 0];

function video(data) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return { url: URL.createObjectURL(new Blob([bytes], { type: "video/mp4" })), size: bytes.length };
}

// of all results; pictures and files that several share are counted once
function held() {
  const sum = (numbers) => numbers.reduce((whole, each) => whole + each, 0);
  const images = [...new Set(results.map(({ state }) => state.image))];
  const files = [...new Set(results.flatMap(({ state }) => Object.values(state.scene.files).map((file) => file.data)))];
  const pictures = images.map(({ url, width, height }) => url.length + 4 * width * height); // as a file, and decoded
  return sum(pictures) + sum(files.map((data) => data.length)) + sum(results.map(({ bytes }) => bytes));
}

export function addResult(found, state, settings) {
  const [clip, strip] = [video(found.clip), video(found.strip)];
  const aspect = found.width / found.height;
  const bytes = clip.size + strip.size + 8 * state.runs.length;
  results.unshift({ number: ++count, about: found.about, settings, state, aspect, clip: clip.url, strip: strip.url, bytes });
  while (results.length > MOST || (results.length > 1 && held() > MOST_BYTES)) {
    const [old] = results.splice(results.findLastIndex((each) => each !== other || results.length === 2), 1);
    if (old === other) other = null;
    [old.clip, old.strip].forEach((url) => URL.revokeObjectURL(url));
  }
  shown = results[0];
  refresh();
}

function put(element, source) {
  if (element.getAttribute("src") !== source) element.src = source;
}

function refresh() {
  put($(".rm-clip"), shown.clip);
  put($(".rm-strip"), shown.strip);
  $(".rm-now a").href = shown.clip;
  $(".rm-whole a").href = shown.strip;
  root.style.setProperty("--rm-aspect", shown.aspect);
  $(".rm-about").textContent = shown.about;
  beside.hidden = !other;
  root.classList.toggle("rm-two", Boolean(other));
  if (other) {
    put(beside.querySelector("video"), other.clip);
    $(".rm-about-beside").textContent = other.about;
    together();
  }
  $(".rm-more").hidden = false;
  const compare = $("[data-result=compare]");
  compare.disabled = results.length < 2;
  compare.setAttribute("aria-pressed", String(Boolean(other)));
  $(".rm-history").replaceChildren(...results.map(thumbnail));
}

// two videos run in step from here
function together() {
  for (const each of [$(".rm-clip"), beside.querySelector("video")]) {
    each.currentTime = 0;
    each.play().catch(() => null); // not loaded yet: it begins by itself
  }
}

const thumbnails = new WeakMap(); // each is decoded once
function thumbnail(result) {
  const button = thumbnails.get(result) || copyOf("#rm-earlier");
  const [picture, text] = button.children;
  if (!thumbnails.has(result)) {
    picture.onloadedmetadata = () => (picture.currentTime = picture.duration / 2);
    picture.src = result.clip;
    text.textContent = `${result.number}: seed ${result.settings.seed}`;
    button.title = result.about;
    button.ariaLabel = `Result ${result.number}: ${result.about}`;
    thumbnails.set(result, button);
  }
  button.setAttribute("aria-pressed", String(result === shown || result === other));
  button.onclick = () => {
    if (!other) shown = result;
    else if (result !== shown) other = result;
    refresh();
  };
  return button;
}

const actions = {
  compare() {
    const at = results.indexOf(shown);
    other = other ? null : results[at + 1] || results[at - 1];
    refresh();
  },
  apart() {
    other = null;
    refresh();
    $("[data-result=compare]").focus();
  },
  async return() {
    const { state, settings } = shown;
    if (await replaced(() => restore(state))) setAll(settings);
  },
};
for (const button of document.querySelectorAll("[data-result]")) button.onclick = () => actions[button.dataset.result]();
for (const each of document.querySelectorAll("figure video")) each.onclick = () => (each.paused ? each.play() : each.pause());
