// The canvas: the image with what is drawn on it, and the pointer.

import { PALETTE, STAYS, addTrack, appendPoint, changed, freeColour, growing, model, paint, remember, simplified, toSegment } from "./model.js";
import { $, clamp } from "./server.js";

const MARGIN = 16; // around the image, so that points can be put at its border and a little outside
const REACH = 13; // CSS pixels in which a point is hit by a mouse
const FINGER = 22; // and by a finger
const DRAG = 5; // a movement below is a click
export const FINE = 4; // samples of a path for each frame

export const canvas = $(".rm-canvas");
const painted = document.createElement("canvas"); // the brush, a pixel for each of the image's
export const view = { scale: 1, left: 0, top: 0, width: 0, height: 0, tool: "track", tab: "draw", radius: 10, stays: false, cursor: null, held: null };
export const shown = { paths: [], points: [], seen: null, control: null, wantsControl: false, frame: 0, playing: false };
let gesture = null;
let hover = null;

const PAINT = [64, 224, 255]; // of the brush that all tracks share
const STILL = [150, 150, 150];
const paletteOf = (value) => (value === STAYS ? STILL : PALETTE[1 + ((value - 1) % (PALETTE.length - 1))]);
export const colourOf = (value) => `rgb(${paletteOf(value).join(" ")})`;
const toImage = (at) => [(at[0] - view.left) / view.scale - 0.5, (at[1] - view.top) / view.scale - 0.5];
export const toScreen = ([x, y]) => [view.left + (x + 0.5) * view.scale, view.top + (y + 0.5) * view.scale];
const inside = ([x, y]) => x >= 0 && y >= 0 && x < model.image.width && y < model.image.height;
const brushRadius = () => view.radius / view.scale;

export function layout() {
  const width = canvas.parentElement.clientWidth;
  const most = Math.max(280, Math.min(window.innerHeight * 0.6, 680));
  const size = model.image || { width: 3, height: 2 };
  view.scale = Math.min((width - 2 * MARGIN) / size.width, (most - 2 * MARGIN) / size.height);
  view.width = width;
  view.height = size.height * view.scale + 2 * MARGIN;
  view.left = (width - size.width * view.scale) / 2;
  view.top = MARGIN;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(view.width * ratio);
  canvas.height = Math.round(view.height * ratio);
  canvas.style.height = `${view.height}px`;
  draw();
}

export function repaintBrush() {
  if (!model.image) return;
  const { width, height } = model.image;
  painted.width = width;
  painted.height = height;
  const picture = new ImageData(width, height);
  const colours = new Map();
  for (let i = 0; i < model.brush.length; i++) {
    const value = model.brush[i];
    if (!value) continue;
    if (!colours.has(value)) colours.set(value, model.own ? paletteOf(value) : PAINT);
    picture.data.set(colours.get(value), 4 * i);
    picture.data[4 * i + 3] = 255;
  }
  painted.getContext("2d").putImageData(picture, 0, 0);
}

export function draw() {
  const ctx = canvas.getContext("2d");
  const ratio = window.devicePixelRatio || 1;
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  ctx.clearRect(0, 0, view.width, view.height);
  if (!model.image) return;
  const { width, height, picture } = model.image;
  const area = [view.left, view.top, width * view.scale, height * view.scale];
  ctx.imageSmoothingEnabled = view.scale < 2;
  ctx.drawImage(picture, ...area);
  const control = shown.wantsControl && shown.control && shown.control.pictures[Math.round(shown.frame)];
  if (control) ctx.drawImage(control, ...area);
  else {
    ctx.globalAlpha = 0.35;
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(painted, ...area);
    ctx.globalAlpha = 1;
  }
  if (!control) {
    drawScene(ctx);
    model.tracks.forEach((track, index) => drawTrack(ctx, track, index));
  }
  drawMoving(ctx);
  if (gesture && gesture.trail) polyline(ctx, gesture.trail.map((entry) => toScreen(entry.at)), colourOf(freeColour()), 3);
  drawCursor(ctx);
  if (hover && view.tab === "draw" && (view.tool === "brush" || view.tool === "erase")) {
    ctx.beginPath();
    ctx.arc(...hover, Math.max(view.radius, 2), 0, 7);
    stroke(ctx, "white", 1.5);
  }
}

// where the arrow keys are, and the point that they move
function drawCursor(ctx) {
  const held = view.held && model.tracks[view.held[0]]?.points[view.held[1]];
  if (!(held || view.cursor) || view.tab !== "draw") return;
  const [x, y] = toScreen(held || view.cursor);
  ctx.beginPath();
  for (const [a, b] of [[-16, -6], [6, 16]]) {
    ctx.moveTo(x + a, y);
    ctx.lineTo(x + b, y);
    ctx.moveTo(x, y + a);
    ctx.lineTo(x, y + b);
  }
  if (held) ctx.rect(x - 12, y - 12, 24, 24);
  stroke(ctx, "white", 1.5);
}

function stroke(ctx, colour, width) {
  ctx.lineJoin = ctx.lineCap = "round";
  ctx.strokeStyle = "rgb(0 0 0 / 0.75)";
  ctx.lineWidth = width + 2.5;
  ctx.stroke();
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.stroke();
}

function polyline(ctx, points, colour, width) {
  if (points.length < 2) return;
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, y) : ctx.moveTo(x, y)));
  stroke(ctx, colour, width);
}

function drawTrack(ctx, track, index) {
  const chosen = index === model.selected;
  const colour = colourOf(track.colour);
  const path = (shown.paths[index] || track.points).map(toScreen);
  polyline(ctx, path, colour, chosen ? 3.5 : 2.5);
  arrow(ctx, path, colour, chosen ? 13 : 11);
  track.points.forEach((point, i) => {
    const [x, y] = toScreen(point);
    ctx.beginPath();
    ctx.arc(x, y, i ? (chosen ? 4.5 : 3) : 6.5, 0, 7);
    ctx.fillStyle = i ? "white" : colour;
    stroke(ctx, i ? colour : "white", 2);
    ctx.fill();
  });
  const [x, y] = toScreen(track.points[0]);
  ctx.font = "600 12px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.lineWidth = 3;
  ctx.strokeStyle = "rgb(0 0 0 / 0.8)";
  ctx.strokeText(index + 1, x, y - 12);
  ctx.fillStyle = "white";
  ctx.fillText(index + 1, x, y - 12);
}

function arrow(ctx, path, colour, size) {
  const tip = path[path.length - 1];
  const back = path.findLast((at) => Math.hypot(at[0] - tip[0], at[1] - tip[1]) > size * 0.8);
  if (!back) return;
  const angle = Math.atan2(tip[1] - back[1], tip[0] - back[0]);
  ctx.beginPath();
  for (const turn of [2.55, 0, -2.55]) {
    const far = turn ? size : size * 0.45;
    ctx.lineTo(tip[0] + far * Math.cos(angle + turn), tip[1] + far * Math.sin(angle + turn));
  }
  ctx.closePath();
  stroke(ctx, colour, 1);
  ctx.fillStyle = colour;
  ctx.fill();
}

// where each track is at the shown moment
function drawMoving(ctx) {
  if (!shown.playing && shown.frame === 0) return;
  model.tracks.forEach((track, index) => {
    const path = shown.seen?.[index] || shown.paths[index];
    if (!path) return;
    const at = clamp(shown.frame * FINE, 0, path.length - 1);
    const [a, b] = [path[Math.floor(at)], path[Math.ceil(at)]];
    const part = at - Math.floor(at);
    ctx.beginPath();
    ctx.arc(...toScreen([a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1])]), 8, 0, 7);
    stroke(ctx, "white", 3);
    ctx.fillStyle = colourOf(track.colour);
    ctx.fill();
  });
}

// how points of the scene move: the whole way while nothing is played, else as far as they are
function drawScene(ctx) {
  const still = !shown.playing && shown.frame === 0;
  if (still && view.tab !== "camera") return;
  const [x, y] = toScreen([-0.5, -0.5]);
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, model.image.width * view.scale, model.image.height * view.scale);
  ctx.clip();
  for (const path of shown.points) {
    const until = still ? path.length - 1 : clamp(Math.round(shown.frame * FINE), 0, path.length - 1);
    const way = path.slice(0, until + 1).filter(Boolean).map(toScreen);
    ctx.globalAlpha = 0.75;
    polyline(ctx, way, "white", 1.25);
    ctx.globalAlpha = 1;
    if (!way.length || !path[until]) continue;
    ctx.beginPath();
    ctx.arc(...way[way.length - 1], 2.5, 0, 7);
    stroke(ctx, "white", 1);
    ctx.fillStyle = "white";
    ctx.fill();
  }
  ctx.restore();
  if (still) drawSeen(ctx);
}

// the tracks as the moving camera sees them
function drawSeen(ctx) {
  ctx.setLineDash([2, 7]);
  (shown.seen || []).forEach((path, index) => {
    if (model.tracks[index]) polyline(ctx, path.filter(Boolean).map(toScreen), colourOf(model.tracks[index].colour), 3);
  });
  ctx.setLineDash([]);
}

function pointer(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

// the key point under the pointer, of the selected track first: [track, point]
function hit(at, reach = REACH) {
  const order = model.tracks.map((_, index) => index).reverse();
  if (model.selected >= 0) order.unshift(model.selected);
  for (const index of order) {
    let [best, nearest] = [-1, reach];
    model.tracks[index].points.forEach((point, i) => {
      const [x, y] = toScreen(point);
      const far = Math.hypot(x - at[0], y - at[1]);
      if (far < nearest) [best, nearest] = [i, far];
    });
    if (best >= 0) return [index, best];
  }
  return null;
}

// a track under the pointer, between its points
function hitLine(at) {
  for (let index = model.tracks.length - 1; index >= 0; index--) {
    const path = (shown.paths[index] || model.tracks[index].points).map(toScreen);
    for (let i = 1; i < path.length; i++) if (toSegment(at, path[i - 1], path[i]) < REACH / 2) return index;
  }
  return -1;
}

// a start lies in the image; the other points may leave it by the margin, which is as far as one can drag
const placed = (at, first) => bounded(toImage(at), first);

export function bounded([x, y], first) {
  const beyond = first ? 0 : MARGIN / view.scale;
  const { width, height } = model.image;
  const rounded = (value) => Math.round(value * 100) / 100;
  return [rounded(clamp(x, -beyond, width - 1 + beyond)), rounded(clamp(y, -beyond, height - 1 + beyond))];
}

export const brushValue = () => (view.tool === "erase" ? 0 : view.stays && model.own ? STAYS : model.tracks[model.selected]?.colour || 1);

canvas.addEventListener("pointerdown", (event) => {
  if (!model.image || event.button > 0 || gesture || view.tab !== "draw") return;
  event.preventDefault();
  Object.assign(view, { cursor: null, held: null });
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  const at = pointer(event);
  if (view.tool !== "track") {
    remember();
    gesture = { painting: brushValue(), last: toImage(at) };
    paintTo(at);
    return;
  }
  const found = hit(at, event.pointerType === "touch" ? FINGER : REACH);
  gesture = { from: at, found, moved: false, trail: null, began: event.timeStamp };
  if (found && found[0] !== model.selected) Object.assign(model, { selected: found[0], open: false });
  draw();
});

canvas.addEventListener("pointermove", (event) => {
  const at = pointer(event);
  hover = at;
  if (!gesture) {
    if (view.tab !== "draw") return;
    if (model.image && view.tool === "track") canvas.style.cursor = hit(at) ? "grab" : "crosshair";
    else if (model.image) draw();
    return;
  }
  if ("painting" in gesture) {
    for (const each of event.getCoalescedEvents?.() || [event]) paintTo(pointer(each));
    return;
  }
  if (!gesture.moved && Math.hypot(at[0] - gesture.from[0], at[1] - gesture.from[1]) < DRAG) return;
  if (!gesture.moved) beginDrag();
  if (gesture.found) {
    const [index, point] = gesture.found;
    model.tracks[index].points[point] = placed(at, point === 0);
    changed({ quietly: true });
  } else {
    gesture.trail.push({ at: placed(at, false), when: event.timeStamp });
    draw();
  }
});

function beginDrag() {
  gesture.moved = true;
  if (gesture.found) return remember();
  gesture.trail = [{ at: placed(gesture.from, true), when: gesture.began }];
}

// a disc of the brush at a point of the image
export function paintDisc(at) {
  paint(at, at, brushRadius(), brushValue());
  repaintBrush();
}

function paintTo(at) {
  const to = toImage(at);
  paint(gesture.last, to, brushRadius(), gesture.painting);
  gesture.last = to;
  repaintBrush();
  draw();
}

canvas.addEventListener("pointerup", (event) => finish(event));
canvas.addEventListener("pointercancel", (event) => finish(event));
canvas.addEventListener("pointerleave", () => {
  hover = null;
  if (!gesture) draw();
});

function finish(event) {
  if (!gesture) return;
  const { trail, moved, found } = gesture;
  const painting = "painting" in gesture;
  const from = gesture.from;
  gesture = null;
  if (painting) return changed();
  if (event.type === "pointercancel") return changed();
  if (trail) finishTrail(trail);
  else if (!moved && !found) click(from);
  changed();
}

function finishTrail(trail) {
  const kept = simplified(trail.map((entry) => entry.at), 4 / view.scale);
  const [began, ended] = [trail[0].when, trail[trail.length - 1].when];
  remember();
  model.open = false;
  const times = kept.map((i) => (ended > began ? (trail[i].when - began) / (ended - began) : i / (trail.length - 1)));
  addTrack(kept.map((i) => trail[i].at), growing(times));
}

// a click puts a point: the next one of the track that is open, or the first of a new one
export function click(at) {
  const open = model.open && model.tracks[model.selected];
  const line = open ? -1 : hitLine(at);
  if (line >= 0) {
    model.selected = line;
    return;
  }
  remember();
  if (open) appendPoint(open, placed(at, false));
  else {
    addTrack([placed(at, true)], null);
    model.open = true;
  }
}

canvas.addEventListener("dblclick", () => endTrack());

export function endTrack() {
  if (!model.open) return;
  model.open = false;
  changed();
}
