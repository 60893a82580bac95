// The editor's controls and keyboard, and when the server is asked for files, paths, control and zip.

import "./banner.js";
import { sceneHint } from "./camera.js";
import { hintIs, note, say } from "./hint.js";
import "./keyboard.js";
import { AT_REST, PALETTE, changed, drawing, easeOf, fromRuns, missing, model, onChange, remember, removePoint, removeTrack, sceneMoves, setSpeed, travel, version } from "./model.js";
import { OPENED, bringBack, openFiles, showExamples } from "./opening.js";
import { play, seek } from "./playback.js";
import { $, ask, copyOf, download, loadPicture, sometimes } from "./server.js";
import { isPreviewed, onSetting, previewed, settings } from "./settings.js";
import { drawPlot } from "./speed.js";
import { FINE, brushValue, canvas, colourOf, draw, endTrack, layout, repaintBrush, shown, view } from "./stage.js";
import { choose } from "./upload.js";

const editor = $(".rm-editor");

hintIs(() => {
  if (!model.image) return [];
  if (view.tab === "camera") return [sceneHint()];
  if (view.tool === "brush") return ["Paint what may move; a rough brush can be snapped to the edges. Without a brush only the squares around the starts of the tracks move."];
  if (view.tool === "erase") return ["Erase parts of the brush."];
  if (!model.open) return ["Drag to draw a track, or click to set its points one by one. Points can be dragged."];
  const done = document.createElement("button");
  Object.assign(done, { type: "button", className: "rm-button rm-done", textContent: "Finish track", onclick: endTrack });
  return [`Track ${model.selected + 1}: click for the next point; Enter or a double click ends it. `, done];
});

onChange((quietly) => {
  if (!quietly) refresh();
  draw();
  drawPlot();
  askPaths();
});

const askPaths = sometimes(40, async () => {
  if (!model.image) return;
  const asked = version;
  const tracks = model.tracks.map((track) => track.points);
  try {
    const { width, height } = model.image;
    const times = model.tracks.map((track) => track.times);
    const eases = model.tracks.map(easeOf);
    const answer = await ask("paths", { width, height, tracks, times, eases, ...previewed(), fine: FINE });
    const found = await answer.json();
    if (asked !== version) return askPaths();
    shown.paths = found.paths;
    draw();
    drawPlot();
    askControl();
  } catch (error) {
    say(error);
  }
});

const askControl = sometimes(250, async () => {
  if (!shown.wantsControl || missing()) return;
  const asked = version;
  editor.classList.add("rm-busy");
  try {
    const found = await (await ask("control", { drawing: drawing(), ...previewed() })).json();
    const pictures = await Promise.all(found.pictures.map(loadPicture));
    if (asked !== version) return askControl();
    shown.control = { pictures };
    if (!shown.frame) seek(settings.frames - 1);
    draw();
  } catch (error) {
    say(error);
  } finally {
    editor.classList.remove("rm-busy");
  }
});

const actions = {
  open: () => choose({ accept: OPENED, multiple: true }, openFiles),
  async save() {
    try {
      if (missing()) throw new Error(missing());
      const zip = await (await ask("save", { drawing: drawing() })).blob();
      download(URL.createObjectURL(zip), "inputs.zip");
      model.edited = false;
    } catch (error) {
      say(error);
    }
  },
  undo: () => goTo(model.past, model.future),
  redo: () => goTo(model.future, model.past),
  clear() {
    remember();
    Object.assign(model, { tracks: [], selected: -1, open: false });
    model.brush.fill(0);
    afterTravel();
  },
  rest() {
    remember();
    model.scene.amounts = { ...AT_REST };
    changed();
  },
  fill() {
    remember();
    model.brush.fill(brushValue() || 1);
    afterTravel();
  },
  async snap() {
    const asked = version;
    editor.classList.add("rm-busy");
    try {
      const { image, runs } = drawing();
      const value = model.own ? brushValue() || model.tracks[model.selected]?.colour || 0 : 0;
      const found = await (await ask("snap", { image, runs, value })).json();
      if (asked !== version) return note("The drawing has changed since; snap again.");
      remember();
      model.brush = fromRuns(found.runs, model.brush.length);
      afterTravel();
    } catch (error) {
      say(error);
    } finally {
      editor.classList.remove("rm-busy");
    }
  },
  unpoint() {
    const track = model.tracks[model.selected];
    if (!track) return;
    remember();
    removePoint(model.selected, track.points.length - 1);
    changed();
  },
  play,
};

function goTo(from, to) {
  const before = model.image;
  if (!travel(from, to)) return;
  if (model.image !== before) Object.assign(shown, { paths: [], points: [], seen: null, control: null, frame: 0 });
  if (model.image !== before) layout();
  afterTravel();
}

function afterTravel() {
  repaintBrush();
  changed();
}

function setTool(tool) {
  Object.assign(view, { tool, tab: "draw" });
  model.open = false;
  canvas.style.cursor = tool === "track" ? "crosshair" : "none";
  changed();
}

// what the controls show of the drawing
function refresh() {
  editor.dataset.tool = view.tool;
  editor.dataset.tab = view.tab;
  for (const button of editor.querySelectorAll("[role=tab]")) {
    button.setAttribute("aria-selected", String(button.dataset.tab === view.tab));
    button.tabIndex = button.dataset.tab === view.tab ? 0 : -1;
  }
  editor.classList.toggle("rm-has-image", Boolean(model.image));
  const brushing = view.tool !== "track";
  for (const each of editor.querySelectorAll(".rm-brush-only")) each.hidden = !brushing;
  $(".rm-own-only").hidden = !brushing || !model.own;
  for (const button of editor.querySelectorAll("[data-tool][aria-pressed]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === view.tool));
    button.disabled = !model.image;
  }
  $("[data-do=undo]").disabled = !model.past.length;
  $("[data-do=redo]").disabled = !model.future.length;
  $("[data-do=clear]").disabled = !model.image;
  $("[data-do=save]").disabled = $("[data-do=fill]").disabled = !model.image;
  $("[data-do=snap]").disabled = !model.brush?.some(Boolean);
  $("[data-do=play]").disabled = $(".rm-time").disabled = !model.tracks.length && !sceneMoves();
  $(".rm-control").disabled = !model.image;
  $(".rm-time").max = settings.frames - 1;
  $(".rm-own").checked = model.own;
  seek(shown.frame);
  $(".rm-tracks").replaceChildren(...model.tracks.map(trackRow));
  const track = model.tracks[model.selected];
  editor.classList.toggle("rm-has-speed", Boolean(track && track.points.length > 1));
  editor.classList.toggle("rm-has-track", Boolean(track));
  if (track) {
    const preset = $(".rm-preset");
    preset.value = track.speed;
    preset.querySelector("[value=drawn]").disabled = !track.drawn;
    preset.querySelector("[value=own]").disabled = track.speed !== "own";
  }
  say(null);
}

function trackRow(track, index) {
  const row = copyOf("#rm-track");
  row.className = index === model.selected ? "rm-chosen" : "";
  const [chip, name, remove] = row.children;
  chip.firstElementChild.style.background = colourOf(track.colour);
  chip.ariaLabel = `Colour of track ${index + 1}`;
  chip.onclick = () => {
    remember();
    track.colour = 1 + (track.colour % (PALETTE.length - 1));
    model.selected = index;
    changed();
  };
  const count = track.points.length;
  name.textContent = `Track ${index + 1}: ${count === 1 ? "1 point, stays" : `${count} points`}`;
  name.onclick = () => {
    Object.assign(model, { selected: index, open: false });
    changed();
  };
  remove.ariaLabel = `Remove track ${index + 1}`;
  remove.onclick = () => {
    remember();
    removeTrack(index);
    changed();
  };
  return row;
}

for (const button of editor.querySelectorAll("[data-do]")) button.onclick = () => actions[button.dataset.do]();
for (const button of editor.querySelectorAll("button[data-tool]")) button.onclick = () => setTool(button.dataset.tool);
$(".rm-radius").oninput = (event) => (view.radius = Number(event.target.value));
$(".rm-own").onchange = (event) => {
  remember();
  model.own = event.target.checked;
  afterTravel();
};
$(".rm-stays").onchange = (event) => (view.stays = event.target.checked);
$(".rm-control").onchange = (event) => {
  Object.assign(shown, { wantsControl: event.target.checked, control: null });
  draw();
  askControl();
};
$(".rm-preset").onchange = (event) => {
  remember();
  setSpeed(model.tracks[model.selected], event.target.value);
  changed();
};

editor.addEventListener("keydown", (event) => {
  if (["INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "checkbox") return;
  const key = event.key.toLowerCase();
  const named = { t: "track", b: "brush", e: "erase" }[key];
  if ((event.ctrlKey || event.metaKey) && key === "z") actions[event.shiftKey ? "redo" : "undo"]();
  else if ((event.ctrlKey || event.metaKey) && key === "y") actions.redo();
  else if (event.ctrlKey || event.metaKey || event.altKey || !model.image) return;
  else if (named && !$(`[data-tool=${named}]`).hidden) setTool(named);
  else if ((key === "enter" || key === "escape") && model.open) endTrack();
  else if ((key === "backspace" || key === "delete") && view.tab === "draw") actions.unpoint();
  else if (key === " " && event.target === canvas) actions.play();
  else return;
  event.preventDefault();
});

const stage = $(".rm-stage");
for (const type of ["dragover", "dragleave", "drop"]) {
  stage.addEventListener(type, (event) => {
    event.preventDefault();
    stage.classList.toggle("rm-over", type === "dragover");
    if (type === "drop") openFiles(event.dataTransfer.files);
  });
}
document.addEventListener("paste", (event) => openFiles(event.clipboardData?.files || []));
new ResizeObserver(() => {
  layout();
  drawPlot();
}).observe(stage);

onSetting((name) => {
  if (!isPreviewed(name)) return;
  if (name === "frames") Object.assign(shown, { control: null, frame: Math.min(shown.frame, settings.frames - 1) });
  changed();
});

window.remoco = { drawing }; // for the browser's console, and for tests
refresh();
showExamples();
bringBack();
