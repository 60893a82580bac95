// The editor's controls and keyboard, and when the server is asked for files, paths, control and zip.

import { attach, kindOf, sceneHint } from "./camera.js";
import { hint, hintIs, say } from "./hint.js";
import { AT_REST, PALETTE, addTrack, changed, drawing, easeOf, fromRuns, model, onChange, remember, removePoint, removeTrack, sceneMoves, sceneOf, setSpeed, travel, version } from "./model.js";
import { play, seek } from "./playback.js";
import { $, facts, ask, base64, copyOf, download, loadPicture, sometimes } from "./server.js";
import { onSetting, previewed, settings } from "./settings.js";
import { drawPlot } from "./speed.js";
import { FINE, brushValue, canvas, colourOf, draw, endTrack, layout, repaintBrush, shown, view } from "./stage.js";

const editor = $(".rm-editor");
const file = $(".rm-file");

hintIs(() => {
  if (!model.image) return ["An image, what may move, and where to."];
  if (view.tab === "camera") return [sceneHint()];
  if (view.tool === "brush") return ["Paint what may move. Without a brush only the squares around the starts of the tracks do."];
  if (view.tool === "erase") return ["Take back what is brushed."];
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
  if (!shown.wantsControl || !model.image) return;
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

async function setDrawing(found) {
  const picture = await loadPicture(found.image);
  const [width, height] = [picture.naturalWidth, picture.naturalHeight];
  const meta = found.meta;
  Object.assign(model, {
    image: { url: found.image, picture, width, height },
    tracks: [],
    brush: fromRuns(found.runs, width * height),
    own: Boolean(meta.brush),
    scene: sceneOf(found),
    open: false,
    past: [],
    future: [],
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
  Object.assign(shown, { paths: [], points: [], seen: null, control: null, frame: 0 });
  layout();
  repaintBrush();
  changed();
  if (found.note) say(found.note);
}

async function openFiles(chosen) {
  const files = [...chosen];
  if (!files.length) return;
  if (files.every((each) => kindOf(each.name))) {
    for (const each of files) await attach(kindOf(each.name), each);
    return;
  }
  say(null);
  hint.replaceChildren("Reading…");
  try {
    const total = files.reduce((sum, each) => sum + each.size, 0);
    if (total > facts.upload) throw new Error(`${(total / 2 ** 20).toFixed(0)} MB, expected at most ${facts.upload / 2 ** 20} MB`);
    const sent = await Promise.all(files.map(async (each) => ({ name: each.name, data: await base64(each) })));
    await setDrawing(await (await ask("open", { files: sent })).json());
  } catch (error) {
    say(error);
  }
}

const actions = {
  open: () => file.click(),
  async save() {
    try {
      const zip = await (await ask("save", { drawing: drawing() })).blob();
      download(URL.createObjectURL(zip), "inputs.zip");
    } catch (error) {
      say(error);
    }
  },
  undo: () => travel(model.past, model.future) && afterTravel(),
  redo: () => travel(model.future, model.past) && afterTravel(),
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
  unpoint() {
    const track = model.tracks[model.selected];
    if (!track) return;
    remember();
    removePoint(model.selected, track.points.length - 1);
    changed();
  },
  play,
};

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
  chip.style.background = colourOf(track.colour);
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
  remove.ariaLabel = `Take away track ${index + 1}`;
  remove.onclick = () => {
    remember();
    removeTrack(index);
    changed();
  };
  return row;
}

async function showExamples() {
  try {
    const found = await (await ask("examples", {})).json();
    $(".rm-examples").replaceChildren(
      ...found.map((example, i) => {
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
      }),
    );
  } catch (error) {
    say(error);
  }
}

for (const button of editor.querySelectorAll("[data-do]")) button.onclick = () => actions[button.dataset.do]();
for (const button of editor.querySelectorAll("button[data-tool]")) button.onclick = () => setTool(button.dataset.tool);
file.onchange = () => {
  openFiles(file.files);
  file.value = "";
};
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
  if (name === "frames") Object.assign(shown, { control: null, frame: Math.min(shown.frame, settings.frames - 1) });
  changed();
});

window.remoco = { drawing }; // for the browser's console, and for tests
refresh();
showExamples();
