// The camera's tab: what moves the scene behind the tracks, its files, and how points of the scene will move.

import { say } from "./hint.js";
import { changed, drawing, model, onChange, remember, sceneMoves, sceneWords, version } from "./model.js";
import { $, ask, base64, clamp, copyOf, sometimes } from "./server.js";
import { previewed } from "./settings.js";
import { FINE, canvas, draw, shown, view } from "./stage.js";
import { checkTotal, choose, failed, upload } from "./upload.js";

// `to` and `from`: the slider's value of an amount and back; the number takes all that the command takes
const PRESETS = {
  pan: { rest: 0, slider: 0.6, most: 1, least: -1, says: "right, part of the width" },
  tilt: { rest: 0, slider: 0.6, most: 1, least: -1, says: "up, part of the height" },
  zoom: { rest: 1, slider: 1, most: 10, least: 0.1, says: "factor, above 1 closer", to: Math.log2, from: (value) => 2 ** value },
  roll: { rest: 0, slider: 45, most: 360, least: -360, step: 1, says: "clockwise, degrees" },
};
const WAITING = {
  poses: "the camera's path, in RealEstate10K's text format",
  depth: "of the image: .npy in the poses' unit, or a PNG of 16 bits in millimetres",
  driving: "MP4, MOV, WebM, MKV or AVI: the clip takes its motion from its start",
};
const ENDINGS = { txt: "poses", npy: "depth", mp4: "driving", mov: "driving", m4v: "driving", webm: "driving", mkv: "driving", avi: "driving" };
const ACCEPTED = { poses: ".txt,text/plain", depth: ".npy,image/png", driving: "video/*,.mkv" };
let sliding = false; // one step of the history for each stroke of a slider

export const kindOf = (name) => ENDINGS[name.toLowerCase().split(".").pop()];

function setKind(kind) {
  remember();
  model.scene.kind = kind;
  changed();
}

export async function attach(kind, chosen) {
  try {
    if (!model.image) throw new Error("open a picture first");
    checkTotal([chosen]);
    const { width, height } = model.image;
    const sent = { kind, name: chosen.name, data: await base64(chosen), width, height };
    const { name, data, about } = await upload("attach", sent, chosen.name);
    remember();
    const files = { ...model.scene.files, [kind]: { name, data, about: `${chosen.name}: ${about}` } };
    Object.assign(model.scene, { kind: kind === "driving" ? "driving" : "poses", files });
    setTab("camera");
    changed();
  } catch (error) {
    failed(error);
  }
}

function setAmount(name, value) {
  if (!sliding) remember();
  sliding = true;
  model.scene.amounts[name] = value;
  changed({ quietly: true });
}

const askMoving = sometimes(120, async () => {
  if (!model.image) return;
  if (!sceneMoves()) {
    if (shown.points.length) {
      Object.assign(shown, { points: [], seen: null });
      draw();
    }
    return;
  }
  const asked = version;
  try {
    const found = await (await ask("moving", { drawing: drawing(), ...previewed(), fine: FINE })).json();
    if (asked !== version) return askMoving();
    Object.assign(shown, { points: found.points, seen: found.tracks });
    draw();
  } catch (error) {
    Object.assign(shown, { points: [], seen: null });
    say(error);
    draw();
  }
});

function refreshCamera() {
  const { kind, amounts, files } = model.scene;
  for (const button of document.querySelectorAll("[data-kind]")) {
    button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
    button.disabled = !model.image;
  }
  for (const part of document.querySelectorAll("[data-of]")) part.hidden = part.dataset.of !== kind;
  $("[data-do=rest]").hidden = kind !== "presets";
  for (const [name, { slider, to }] of Object.entries(PRESETS)) {
    const row = $(`[data-preset=${name}]`);
    row.querySelector("[type=range]").value = clamp(to ? to(amounts[name]) : amounts[name], -slider, slider);
    const number = row.querySelector("[type=number]");
    if (number !== document.activeElement) number.value = amounts[name];
  }
  for (const [name, text] of Object.entries(WAITING)) {
    const said = $(`[data-about=${name}]`);
    said.textContent = files[name] ? files[name].about || files[name].name : text;
    said.classList.toggle("rm-there", Boolean(files[name]));
  }
  $(".rm-badge").textContent = sceneWords();
}

export function sceneHint() {
  const { kind, files } = model.scene;
  if (kind === "still") return "The scene stands still; only what is drawn moves.";
  if (kind === "presets") {
    if (!sceneMoves()) return "Pull a slider: the lines show how points of the scene will move.";
    return "The camera turns and zooms, over the whole clip. Tracks are drawn in the first picture and are what objects do by themselves.";
  }
  if (kind === "driving") {
    if (!files.driving) return "A video whose motion the clip takes. A brush without tracks says where.";
    return "The lines are the video's motion. A brush without tracks says where; tracks move over it.";
  }
  if (!sceneMoves()) return "The camera's path needs to know how far things are: both files.";
  return "The camera moves along its path. Tracks are drawn in the first picture and are what objects do by themselves.";
}

function setTab(tab) {
  view.tab = tab;
  model.open = false;
  if (tab === "camera") canvas.style.cursor = "default";
  changed();
}

for (const [name, { rest, slider, least, most, step = 0.01, says, from }] of Object.entries(PRESETS)) {
  const row = copyOf("#rm-amount");
  row.dataset.preset = name;
  const title = name[0].toUpperCase() + name.slice(1);
  row.querySelector("b").textContent = title;
  row.querySelector("i").textContent = says;
  const [range, number] = row.querySelectorAll("input");
  Object.assign(range, { min: -slider, max: slider, step, ariaLabel: title });
  Object.assign(number, { min: least, max: most, step, ariaLabel: `${title}, number` });
  const rounded = (value) => Math.round(value * 100) / 100;
  range.oninput = () => setAmount(name, rounded(from ? from(Number(range.value)) : Number(range.value)));
  number.oninput = () => number.value !== "" && setAmount(name, clamp(Number(number.value), least, most));
  range.onchange = number.onchange = () => {
    sliding = false;
    if (number.value === "") setAmount(name, rest);
    number.blur();
    changed();
  };
  $(".rm-presets").append(row);
}
for (const button of document.querySelectorAll("[data-kind]")) button.onclick = () => setKind(button.dataset.kind);
const tabs = [...document.querySelectorAll("[role=tab]")];
for (const tab of tabs) {
  tab.onclick = () => setTab(tab.dataset.tab);
  tab.onkeydown = (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = tabs[(tabs.indexOf(tab) + 1) % tabs.length]; // of two
    other.focus();
    setTab(other.dataset.tab);
  };
}
for (const button of document.querySelectorAll("[data-attach]")) {
  const kind = button.dataset.attach;
  button.onclick = () => choose({ accept: ACCEPTED[kind] }, ([file]) => attach(kind, file));
}
onChange(() => {
  refreshCamera();
  askMoving();
});
refreshCamera();
