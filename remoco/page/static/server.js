// What the server is asked, and what comes of it; and helpers that several parts share.

export const $ = (selector) => document.querySelector(selector);
export const clamp = (value, least, most) => Math.max(least, Math.min(most, value));
export const copyOf = (template) => $(template).content.firstElementChild.cloneNode(true);

export const UNANSWERED = "the server does not answer; is `remoco page` still running?";

export async function ask(path, body, signal = null) {
  let answer;
  try {
    answer = await fetch(`page/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error(UNANSWERED);
  }
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => null);
  throw new Error(found?.error || `the server answers ${answer.status}`);
}

// what makes the clips, its settings, what it takes, the colours of tracks, and the most bytes of an upload; see makers.py
export const facts = await (await ask("about", {})).json();
for (const each of document.querySelectorAll("[data-takes]")) each.hidden = !facts.takes.includes(each.dataset.takes);

// the data of server-sent events, each one a text of JSON. An EventSource sends no drawing, and would ask again by itself.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let got = await reader.read(); !got.done; got = await reader.read()) {
    rest += got.value;
    if (!got.value.includes("\n")) continue; // a video comes in many pieces
    const found = rest.split("\n\n");
    rest = found.pop();
    yield* found.map((event) => JSON.parse(event.replace(/^data: /, "")));
  }
}

// at most one call at a time, the last one always made, `pause` ms after what led to it
export function sometimes(pause, call) {
  let [timer, running, again] = [null, false, false];
  const start = async () => {
    timer = null;
    running = true;
    await call();
    running = false;
    if (again) soon();
    again = false;
  };
  const soon = () => {
    if (running) again = true;
    else timer ||= setTimeout(start, pause);
  };
  return soon;
}

export function loadPicture(url) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("the browser cannot show this picture"));
    picture.src = url;
  });
}

export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${blob.name} cannot be read`));
    reader.readAsDataURL(blob);
  });
}

export function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
