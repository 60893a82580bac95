// What is drawn: image, tracks, brush, history, and the listeners for changes. No DOM in here.

import { facts } from "./server.js";

export const PALETTE = facts.palette;
export const STAYS = 200; // the brush value of what must stay: no track has it
const MOST_STEPS = 100; // of the history
const MOST_PICTURES = 8; // that the history holds beside the one that is shown

export const AT_REST = { pan: 0, tilt: 0, zoom: 1, roll: 0 };

export const model = {
  image: null, // {url, picture, width, height}
  tracks: [], // {points, times or null, drawn or null, colour, speed}
  brush: null, // Uint8Array, a value for each pixel, 0 is not brushed
  own: false, // each track moves what is brushed in its colour
  selected: -1,
  open: false, // the selected track takes the next click
  scene: stillScene(), // what moves behind the tracks
  edited: false, // since it was opened, or its inputs were downloaded
  past: [],
  future: [],
};

export let version = 0; // of the drawing: late answers to older ones are dropped
const watchers = [];
export const onChange = (call) => watchers.push(call);

// after every change of what is drawn or shown of it; `quietly` while something is being dragged
export function changed({ quietly = false } = {}) {
  version++;
  watchers.forEach((call) => call(quietly));
}

// kind: still, presets, poses or driving; amounts of the presets; files: poses, depth and driving as {name, data, about}
function stillScene() {
  return { kind: "still", amounts: { ...AT_REST }, files: {} };
}

// what of the scene is in meta_data.json, and the files beside it
function sceneInputs() {
  const { kind, amounts, files } = model.scene;
  const { poses, depth, driving } = files;
  if (kind === "presets") {
    const camera = Object.fromEntries(Object.entries(amounts).filter(([name, amount]) => amount !== AT_REST[name]));
    if (Object.keys(camera).length) return { meta: { camera }, files: {} };
  }
  if (kind === "poses" && poses && depth) {
    const meta = { camera: { poses: poses.name, depth: depth.name } };
    return { meta, files: { [poses.name]: poses.data, [depth.name]: depth.data } };
  }
  if (kind === "driving" && driving) return { meta: { driving: driving.name }, files: { [driving.name]: driving.data } };
  return { meta: {}, files: {} };
}

export const sceneMoves = () => Object.keys(sceneInputs().meta).length > 0;

export function sceneWords() {
  const { camera, driving } = sceneInputs().meta;
  if (driving) return "video";
  if (!camera) return "";
  return camera.poses ? "poses" : Object.entries(camera).map(([name, amount]) => `${name} ${amount}`).join(", ");
}

// the scene of a drawing that the server sent
export function sceneOf({ meta, files = {} }) {
  const scene = stillScene();
  const file = (name) => ({ name, data: files[name] });
  if (meta.driving) Object.assign(scene, { kind: "driving", files: { driving: file(meta.driving) } });
  else if (meta.camera?.poses) {
    Object.assign(scene, { kind: "poses", files: { poses: file(meta.camera.poses), depth: file(meta.camera.depth) } });
  } else if (meta.camera) Object.assign(scene, { kind: "presets", amounts: { ...AT_REST, ...meta.camera } });
  return scene;
}

function runs(brush) {
  const found = [];
  for (let start = 0; start < brush.length; ) {
    let end = start + 1;
    while (end < brush.length && brush[end] === brush[start]) end++;
    found.push(brush[start], end - start);
    start = end;
  }
  return found;
}

export function fromRuns(found, length) {
  const brush = new Uint8Array(length);
  let at = 0;
  for (let i = 0; i < found.length; i += 2) {
    brush.fill(found[i], at, at + found[i + 1]);
    at += found[i + 1];
  }
  return brush;
}

// all that is drawn; image and files are large and never changed, only replaced
export function snapshot() {
  const { image, tracks, own, selected, open, edited } = model;
  const { kind, amounts, files } = model.scene;
  const scene = { kind, amounts: { ...amounts }, files };
  return { image, tracks: structuredClone(tracks), runs: image && runs(model.brush), own, selected, open, edited, scene };
}

export function restore({ image, runs: found, scene, tracks, ...rest }) {
  Object.assign(model, rest, { image, tracks: structuredClone(tracks), scene: { ...scene, amounts: { ...scene.amounts } } });
  model.brush = image && fromRuns(found, image.width * image.height);
}

// before every change
export function remember() {
  model.past.push(snapshot());
  const pictures = new Set();
  const kept = model.past.findLastIndex(({ image }) => pictures.add(image).size > MOST_PICTURES) + 1;
  model.past.splice(0, Math.max(kept, model.past.length - MOST_STEPS));
  model.future = [];
  model.edited = true;
}

// whether something would be lost with the drawing
export const worked = () => model.edited && (model.tracks.length > 0 || model.brush?.some(Boolean) || sceneMoves());

// why nothing can be made of the drawing yet, in a line; null where it can
export function missing() {
  const { kind, files } = model.scene;
  if (!model.image) return "open a picture first";
  if (kind === "poses" && !(files.poses && files.depth)) {
    const wanted = ["poses", "depth"].filter((name) => !files[name]).map((name) => ({ poses: "the file of poses", depth: "the depth map" })[name]);
    return `Camera, Poses: add ${wanted.join(" and ")} first, or choose Still`;
  }
  if (kind === "driving" && !files.driving) return "Camera, Video: add the video first, or choose Still";
  if (model.tracks.length || sceneMoves()) return null;
  return "draw at least one track, or let the camera move; a single point keeps its place still";
}

export function travel(from, to) {
  if (!from.length) return false;
  to.push(snapshot());
  restore(from.pop());
  return true;
}

export function freeColour() {
  const used = new Set(model.tracks.map((track) => track.colour));
  for (let colour = 1; colour < PALETTE.length; colour++) if (!used.has(colour)) return colour;
  return 1 + (model.tracks.length % (PALETTE.length - 1));
}

export function addTrack(points, drawn) {
  const times = drawn && points.length > 1 ? drawn : null;
  model.tracks.push({ points, times, drawn: times, colour: freeColour(), speed: times ? "drawn" : "even" });
  model.selected = model.tracks.length - 1;
}

export function removeTrack(index) {
  model.tracks.splice(index, 1);
  if (model.selected >= index) model.selected = Math.min(model.selected - (model.selected > index), model.tracks.length - 1);
  model.open = false;
}

// a point less is another track: its own times stay, without the point's
export function removePoint(index, point) {
  const track = model.tracks[index];
  track.points.splice(point, 1);
  if (track.times) track.times.splice(point, 1);
  if (track.drawn) track.drawn.splice(point, 1);
  if (!track.points.length) removeTrack(index);
  else if (track.points.length === 1) Object.assign(track, { times: null, drawn: null, speed: "even" });
}

export function appendPoint(track, at) {
  track.points.push(at);
  Object.assign(track, { times: null, drawn: null, speed: "even" });
}

// Ramer, Douglas and Peucker: the indices of the few points within `tolerance` of whose polyline all others are
export function simplified(points, tolerance) {
  const keep = new Set([0, points.length - 1]);
  const pending = [[0, points.length - 1]];
  while (pending.length) {
    const [first, last] = pending.pop();
    let [farthest, most] = [-1, tolerance];
    for (let i = first + 1; i < last; i++) {
      const far = toSegment(points[i], points[first], points[last]);
      if (far > most) [farthest, most] = [i, far];
    }
    if (farthest < 0) continue;
    keep.add(farthest);
    pending.push([first, farthest], [farthest, last]);
  }
  return [...keep].sort((a, b) => a - b);
}

export function toSegment([x, y], [ax, ay], [bx, by]) {
  const [dx, dy] = [bx - ax, by - ay];
  const length = dx * dx + dy * dy;
  const t = length ? Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / length)) : 0;
  return Math.hypot(x - ax - t * dx, y - ay - t * dy);
}

// what part of the way along the track each key point is at, in 0..1
export function fractions(points) {
  const along = [0];
  for (let i = 1; i < points.length; i++) {
    along.push(along[i - 1] + Math.hypot(points[i][0] - points[i - 1][0], points[i][1] - points[i - 1][1]));
  }
  const whole = along[along.length - 1];
  return along.map((way, i) => (whole ? way / whole : i / Math.max(1, points.length - 1)));
}

// when a track is at a part of its way; of an ease the inverses of t^2, 1 - (1 - t)^2 and (1 - cos(pi t)) / 2
const EASES = {
  "ease in": (way) => Math.sqrt(way),
  "ease out": (way) => 1 - Math.sqrt(1 - way),
  "ease in and out": (way) => Math.acos(1 - 2 * way) / Math.PI,
};
// what is written of an ease: its name, and not the times of key points, of which two are enough
export const easeOf = (track) => (track.speed.startsWith("ease ") ? track.speed.slice("ease ".length) : null);

// when a track is at each of its points
export function timesOf(track) {
  if (easeOf(track)) return growing(fractions(track.points).map(EASES[track.speed]));
  return track.times ? [...track.times] : evenTimes(track.points.length);
}

export function setSpeed(track, speed) {
  if (track.points.length < 2) return;
  track.speed = speed;
  if (speed === "even" || easeOf(track)) track.times = null;
  else if (speed === "drawn") track.times = track.drawn && [...track.drawn];
  else if (speed === "steady") track.times = growing(fractions(track.points));
}

// times have to grow: points on one spot are given a moment each
export function growing(times) {
  const gap = 1e-3;
  const found = times.map((time) => Math.max(0, Math.min(1, time)));
  for (let i = 1; i < found.length; i++) found[i] = Math.max(found[i], found[i - 1] + gap);
  const last = found.length - 1;
  found[last] = Math.min(found[last], 1);
  for (let i = last - 1; i >= 0; i--) found[i] = Math.min(found[i], found[i + 1] - gap);
  return found;
}

function evenTimes(count) {
  return Array.from({ length: count }, (_, i) => (count > 1 ? i / (count - 1) : 0));
}

// a disc of `value` at every pixel's distance from a stroke, in image pixels
export function paint(from, to, radius, value) {
  const { width, height } = model.image;
  const reach = Math.max(radius, 0.5);
  const [left, right] = [Math.min(from[0], to[0]) - reach, Math.max(from[0], to[0]) + reach];
  const [top, bottom] = [Math.min(from[1], to[1]) - reach, Math.max(from[1], to[1]) + reach];
  for (let y = Math.max(0, Math.ceil(top)); y <= Math.min(height - 1, bottom); y++) {
    for (let x = Math.max(0, Math.ceil(left)); x <= Math.min(width - 1, right); x++) {
      if (toSegment([x, y], from, to) <= reach) model.brush[y * width + x] = value;
    }
  }
}

// the drawing as the server reads it; see exchange.py
export function drawing() {
  if (!model.image) return null;
  const { tracks, image, brush, own } = model;
  const values = new Set(brush);
  const scene = sceneInputs();
  return {
    image: image.url,
    runs: runs(own ? brush : brush.map((value) => (value ? 1 : 0))),
    meta: {
      traj_key_points: tracks.map((track) => track.points),
      times: tracks.map((track) => track.times),
      ...(tracks.some(easeOf) ? { ease: tracks.map(easeOf) } : {}),
      ...(own ? { brush: tracks.map((track) => (values.has(track.colour) ? track.colour : null)) } : {}),
      ...scene.meta,
    },
    files: scene.files,
  };
}
