// The moment that is shown: the slider below the image, and playing it.

import { model } from "./model.js";
import { $, clamp } from "./server.js";
import { settings } from "./settings.js";
import { drawPlot } from "./speed.js";
import { canvas, draw, shown } from "./stage.js";

let clock = null;

export function seek(frame) {
  shown.frame = clamp(frame, 0, settings.frames - 1);
  $(".rm-time").value = shown.frame;
  $(".rm-frame").textContent = `frame ${Math.round(shown.frame) + 1} of ${settings.frames}`;
}

function start() {
  shown.playing = true;
  $("[data-do=play]").textContent = "Pause";
  const began = performance.now() - ((shown.frame < settings.frames - 1 ? shown.frame : 0) / settings.fps) * 1000;
  const tick = (now) => {
    if (!shown.playing) return;
    const length = settings.frames - 1;
    const rest = Math.max(4, settings.fps * 0.5); // the last frame is held for half a second
    seek(Math.min(length, (((now - began) / 1000) * settings.fps) % (length + rest)));
    draw();
    drawPlot();
    clock = requestAnimationFrame(tick);
  };
  clock = requestAnimationFrame(tick);
}

function stop() {
  shown.playing = false;
  cancelAnimationFrame(clock);
  $("[data-do=play]").textContent = "Play";
}

export const play = () => (shown.playing ? stop() : start());

$(".rm-time").oninput = (event) => {
  stop();
  seek(Number(event.target.value));
  draw();
  drawPlot();
};
canvas.addEventListener("pointerdown", () => model.image && stop());
