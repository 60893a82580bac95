// The speed curve of the selected track: how far along its way it is (up) at what part of the clip (to the right).

import { speak } from "./hint.js";
import { changed, fractions, growing, model, remember, timesOf } from "./model.js";
import { $, clamp } from "./server.js";
import { settings } from "./settings.js";
import { colourOf, shown } from "./stage.js";

const plot = $(".rm-plot");
const PAD = { left: 30, right: 12, top: 10, bottom: 20 };
let held = null; // by the pointer
let chosen = 0; // by the keyboard

function plotArea() {
  const [width, height] = [plot.clientWidth, plot.clientHeight];
  return { left: PAD.left, top: PAD.top, width: width - PAD.left - PAD.right, height: height - PAD.top - PAD.bottom };
}

function plotPoints(track) {
  const area = plotArea();
  const times = timesOf(track);
  const ways = fractions(track.points);
  return times.map((time, i) => [area.left + time * area.width, area.top + (1 - ways[i]) * area.height]);
}

export function drawPlot() {
  const track = model.tracks[model.selected];
  const ratio = window.devicePixelRatio || 1;
  plot.width = Math.round(plot.clientWidth * ratio);
  plot.height = Math.round(plot.clientHeight * ratio);
  if (!track || track.points.length < 2 || !plot.width) return;
  const ctx = plot.getContext("2d");
  const css = getComputedStyle(plot);
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  const area = plotArea();
  ctx.strokeStyle = css.getPropertyValue("--rm-line");
  ctx.strokeRect(area.left, area.top, area.width, area.height);
  ctx.beginPath();
  for (let i = 1; i < 4; i++) {
    ctx.moveTo(area.left + (area.width * i) / 4, area.top);
    ctx.lineTo(area.left + (area.width * i) / 4, area.top + area.height);
  }
  ctx.globalAlpha = 0.5;
  ctx.stroke();
  ctx.globalAlpha = 1;
  ctx.fillStyle = css.color;
  ctx.font = "11px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.fillText("clip", area.left + area.width / 2, area.top + area.height + 14);
  ctx.fillText("0", area.left, area.top + area.height + 14);
  ctx.fillText("1", area.left + area.width, area.top + area.height + 14);
  ctx.save();
  ctx.translate(14, area.top + area.height / 2);
  ctx.rotate(-Math.PI / 2);
  ctx.fillText("way", 0, 0);
  ctx.restore();
  const path = shown.paths[model.selected];
  ctx.strokeStyle = colourOf(track.colour);
  ctx.lineWidth = 2.5;
  ctx.lineJoin = "round";
  if (path) {
    ctx.beginPath();
    fractions(path).forEach((way, i) => {
      ctx.lineTo(area.left + (i / (path.length - 1)) * area.width, area.top + (1 - way) * area.height);
    });
    ctx.stroke();
    const now = area.left + (shown.frame / Math.max(1, settings.frames - 1)) * area.width;
    ctx.strokeStyle = css.color;
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(now, area.top);
    ctx.lineTo(now, area.top + area.height);
    ctx.stroke();
  }
  const focused = document.activeElement === plot;
  plotPoints(track).forEach(([x, y], i) => {
    ctx.beginPath();
    ctx.arc(x, y, focused && i === chosen ? 8 : 5, 0, 7);
    ctx.fillStyle = "white";
    ctx.strokeStyle = colourOf(track.colour);
    ctx.lineWidth = 2.5;
    ctx.fill();
    ctx.stroke();
  });
}

function plotPointer(event) {
  const box = plot.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

plot.addEventListener("pointerdown", (event) => {
  const track = model.tracks[model.selected];
  if (!track || track.points.length < 2) return;
  event.preventDefault();
  const at = plotPointer(event);
  const far = plotPoints(track).map(([x, y]) => Math.hypot(x - at[0], y - at[1]));
  const nearest = far.indexOf(Math.min(...far));
  if (far[nearest] > 20) return;
  remember();
  plot.setPointerCapture(event.pointerId);
  held = nearest;
});

plot.addEventListener("pointermove", (event) => {
  const track = model.tracks[model.selected];
  if (held === null || !track) return;
  const area = plotArea();
  setTime(track, held, (plotPointer(event)[0] - area.left) / area.width);
  changed({ quietly: true });
});

// between the times of the points before and after it
function setTime(track, point, time) {
  const times = timesOf(track);
  const gap = 0.01;
  const least = point ? times[point - 1] + gap : 0;
  const most = point < times.length - 1 ? times[point + 1] - gap : 1;
  times[point] = clamp(time, least, Math.max(least, most));
  Object.assign(track, { times: growing(times), speed: "own" });
}

plot.addEventListener("keydown", (event) => {
  const track = model.tracks[model.selected];
  const [step, along] = { ArrowDown: [-1, 0], ArrowUp: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] || [0, 0];
  if (!track || track.points.length < 2 || (!step && !along)) return;
  event.preventDefault();
  chosen = clamp(chosen + step, 0, track.points.length - 1);
  if (along) {
    remember();
    setTime(track, chosen, timesOf(track)[chosen] + along * (event.shiftKey ? 0.01 : 0.05));
    changed();
  }
  drawPlot();
  speak(`Point ${chosen + 1} of ${track.points.length} at ${Math.round(100 * timesOf(track)[chosen])} percent of the clip`);
});
for (const type of ["focus", "blur"]) plot.addEventListener(type, drawPlot);

for (const type of ["pointerup", "pointercancel"]) {
  plot.addEventListener(type, () => {
    if (held !== null) changed();
    held = null;
  });
}
