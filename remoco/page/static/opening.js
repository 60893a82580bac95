// How a drawing comes onto the page: files, examples, what was there before a reload. Each can be undone, and asks
// before it takes the place of work.

import { attach, kindOf } from "./camera.js";
import { note, say } from "./hint.js";
import { addTrack, changed, fromRuns, model, remember, restore, sceneOf, worked } from "./model.js";
import { $, ask, base64, facts, loadPicture } from "./server.js";
import { setAll } from "./settings.js";
import { layout, repaintBrush, shown } from "./stage.js";
import { kept } from "./store.js";
import { checkTotal, failed, upload } from "./upload.js";

const dialog = $(".rm-ask");
export const OPENED = "image/png,image/jpeg,image/webp,image/bmp,image/gif,image/tiff,image/avif,.zip,.json,.txt,.npy,.npz,.pth,video/*,.mkv";

function confirmed(text) {
  $("#rm-ask-text").textContent = text;
  dialog.returnValue = "no"; // where it is closed by Escape
  dialog.showModal();
  return new Promise((resolve) => (dialog.onclose = () => resolve(dialog.returnValue === "yes")));
}
for (const button of dialog.querySelectorAll("button")) button.onclick = () => dialog.close(button.dataset.answer);

// after the whole drawing was replaced
function shownAnew() {
  Object.assign(shown, { paths: [], points: [], seen: null, control: null, frame: 0 });
  layout();
  repaintBrush();
  changed();
}

// `put` sets the drawing; false where the person keeps the one that is there
export async function replaced(put) {
  if (worked() && !(await confirmed("Replace what is drawn? Undo brings it back."))) return false;
  remember();
  put();
  model.edited = false;
  shownAnew();
  return true;
}

function fill(found, picture) {
  const [width, height] = [picture.naturalWidth, picture.naturalHeight];
  const meta = found.meta;
  Object.assign(model, {
    image: { url: found.image, picture, width, height },
    tracks: [],
    brush: fromRuns(found.runs, width * height),
    own: Boolean(meta.brush),
    scene: sceneOf(found),
    open: false,
  });
  meta.traj_key_points.forEach((points, i) => {
    addTrack(points, null);
    const track = model.tracks[i];
    const times = meta.times?.[i];
    if (times) Object.assign(track, { times, drawn: [...times], speed: "drawn" });
    if (meta.ease?.[i]) track.speed = `ease ${meta.ease[i]}`;
    if (meta.brush?.[i]) track.colour = meta.brush[i];
  });
  model.selected = model.tracks.length - 1;
}

async function setDrawing(found) {
  const picture = await loadPicture(found.image);
  const done = await replaced(() => fill(found, picture));
  if (done && found.meta.prompt) setAll({ prompt: found.meta.prompt });
  if (done && found.note) note(found.note);
  else if (!done) say(null);
}

export async function openFiles(chosen) {
  const files = [...chosen];
  if (!files.length) return;
  if (files.every((each) => kindOf(each.name))) {
    for (const each of files) await attach(kindOf(each.name), each);
    return;
  }
  try {
    checkTotal(files);
    const sent = await Promise.all(files.map(async (each) => ({ name: each.name, data: await base64(each) })));
    await setDrawing(await upload("open", { files: sent }, files.length > 1 ? `${files.length} files` : files[0].name));
  } catch (error) {
    failed(error);
  }
}

export async function showExamples() {
  try {
    const found = await (await ask("examples", {})).json();
    $(".rm-examples").replaceChildren(...found.map(exampleButton));
    const first = found.find((each) => each.opens);
    if (first && !model.image && !(await kept()) && !model.image) await setDrawing(structuredClone(first.drawing));
  } catch (error) {
    say(error);
  }
}

function exampleButton(example, i) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "rm-example";
  button.title = `Example ${i + 1}: ${example.name}`;
  button.setAttribute("aria-label", button.title);
  const picture = document.createElement("img");
  picture.src = example.drawing.image;
  picture.alt = "";
  button.append(picture);
  button.onclick = () => setDrawing(structuredClone(example.drawing)).catch(say);
  return button;
}

// what this tab had before a reload
export async function bringBack() {
  const found = await kept();
  if (!found || model.image) return;
  try {
    const picture = await loadPicture(found.url);
    if (model.image) return;
    restore({ ...found.state, image: { url: found.url, picture, width: picture.naturalWidth, height: picture.naturalHeight } });
    if (!facts.takes.includes("brush")) {
      model.brush.fill(0);
      model.own = false;
    }
    if (!facts.takes.includes("camera")) model.scene.kind = "still";
    setAll(found.settings);
    shownAnew();
  } catch {
    note("What this tab had before could not be brought back.");
  }
}
