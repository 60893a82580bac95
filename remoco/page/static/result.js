// A generation: asked for, cancelled, its progress and its videos, from the events that the server sends; see jobs.py.
// It lasts as long as somebody listens: closing the page ends it.

import { drawing, model } from "./model.js";
import { $, ask, events } from "./server.js";
import { settings } from "./settings.js";

const ENDS = ["done", "error", "cancelled"];
const root = $(".rm-result");
let urls = [];
let job = null; // the secret that cancels it

function show(found) {
  root.dataset.state = found.state;
  const part = found.state === "done" ? 1 : (found.step || 0) / (found.steps || 1);
  $(".rm-bar > div").style.width = `${100 * part}%`;
  $(".rm-said").textContent = found.message || "";
  if (found.state !== "done") return;
  urls.forEach((url) => URL.revokeObjectURL(url));
  urls = [found.clip, found.strip].map((data) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  });
  [".rm-clip", ".rm-strip"].forEach((name, i) => {
    $(name).src = urls[i];
    $(name).closest("figure").querySelector("a").href = urls[i];
  });
  root.style.setProperty("--rm-aspect", found.width / found.height);
  $(".rm-about").textContent = found.about;
  $(".rm-panels").textContent = found.panels.join(", ");
}

async function generate() {
  if (!model.image) return show({ state: "error", message: "open an image and draw a track first" });
  $("#rm-generate").disabled = true;
  let last = { state: "idle" };
  try {
    for await (const event of events((await ask("generate", { drawing: drawing(), settings })).body)) {
      if (event.job) job = event.job;
      else show((last = event));
      $("#rm-cancel").disabled = !job || ENDS.includes(last.state);
    }
    if (!ENDS.includes(last.state)) throw new Error("the server has ended the generation");
  } catch (error) {
    show({ state: "error", message: String(error.message || error) });
  } finally {
    job = null;
    $("#rm-generate").disabled = false;
    $("#rm-cancel").disabled = true;
  }
}

for (const video of root.querySelectorAll("video")) video.onclick = () => (video.paused ? video.play() : video.pause());
$("#rm-generate").onclick = generate;
$("#rm-cancel").onclick = () => ask("cancel", { job }).catch((error) => show({ state: "error", message: error.message }));
