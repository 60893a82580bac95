// The image by the keyboard: arrow keys move a cursor, Enter puts a point there, N and P take points to move them.
// What happens is said to a screen reader.

import { speak } from "./hint.js";
import { changed, model, remember } from "./model.js";
import { bounded, canvas, click, draw, endTrack, paintDisc, toScreen, view } from "./stage.js";

const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ACROSS = 32; // steps along the image's longer side
let moving = false; // the held point has moved: one step of the history

const words = ([x, y]) => `${Math.round(x)}, ${Math.round(y)}`;
const heldPoint = () => view.held && model.tracks[view.held[0]]?.points[view.held[1]];

function move([dx, dy], finely) {
  const { width, height } = model.image;
  const step = finely ? 1 : Math.max(1, Math.round(Math.max(width, height) / ACROSS));
  const held = heldPoint();
  if (!held) {
    view.held = null;
    const [x, y] = view.cursor || [Math.floor(width / 2), Math.floor(height / 2)];
    view.cursor = view.cursor ? bounded([x + dx * step, y + dy * step], !model.open) : [x, y];
    draw();
    return speak(`${words(view.cursor)} of ${width} by ${height}`);
  }
  if (!moving) remember();
  moving = true;
  const [track, point] = view.held;
  model.tracks[track].points[point] = bounded([held[0] + dx * step, held[1] + dy * step], point === 0);
  changed({ quietly: true });
  speak(words(model.tracks[track].points[point]));
}

// the next or the previous of all points
function take(step) {
  const all = model.tracks.flatMap(({ points }, track) => points.map((_, point) => [track, point]));
  if (!all.length) return speak("There are no points yet.");
  const was = view.held ? all.findIndex(([a, b]) => a === view.held[0] && b === view.held[1]) : step > 0 ? -1 : 0;
  const [track, point] = all[(was + step + all.length) % all.length];
  moving = false;
  Object.assign(view, { held: [track, point], cursor: null });
  Object.assign(model, { selected: track, open: false });
  changed();
  const { points } = model.tracks[track];
  speak(`Moving point ${point + 1} of ${points.length} of track ${track + 1}, at ${words(points[point])}`);
}

function letGo() {
  const point = heldPoint();
  view.cursor = point && [...point];
  view.held = null;
  moving = false;
  changed();
  if (point) speak(`The point stays at ${words(point)}`);
}

function put() {
  if (view.tool !== "track") {
    remember();
    paintDisc(view.cursor);
    changed();
    return speak(`${view.tool === "brush" ? "Painted" : "Erased"} around ${words(view.cursor)}`);
  }
  const before = model.tracks.length;
  const was = model.selected;
  const points = model.tracks[was]?.points.length;
  click(toScreen(view.cursor));
  changed();
  const track = model.tracks[model.selected];
  const name = `Track ${model.selected + 1}`;
  if (model.tracks.length > before) speak(`${name} starts at ${words(track.points[0])}`);
  else if (model.selected === was && track.points.length > points) speak(`${name}, point ${track.points.length} at ${words(track.points.at(-1))}`);
  else speak(`${name} is chosen`);
}

canvas.addEventListener("keydown", (event) => {
  if (!model.image || view.tab !== "draw" || event.ctrlKey || event.metaKey || event.altKey) return;
  const way = WAYS[event.key];
  const key = event.key.toLowerCase();
  if (way) move(way, event.shiftKey);
  else if (key === "n" || key === "p") take(key === "n" ? 1 : -1);
  else if (view.held && (key === "enter" || key === "escape")) letGo();
  else if (view.cursor && key === "enter") put();
  else if (key === "escape" && model.open) {
    endTrack();
    speak(`Track ${model.selected + 1} has ended`);
  } else return;
  event.preventDefault();
  event.stopPropagation(); // Enter ends a track that is drawn with the pointer
});
canvas.addEventListener("blur", () => view.held && letGo());
