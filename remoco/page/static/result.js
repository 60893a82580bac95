// A generation: asked for, cancelled, and its progress, from the events that the server sends; see jobs.py.
// It lasts as long as somebody listens: closing the page ends it.

import { addResult } from "./earlier.js";
import { drawing, missing, onChange, snapshot } from "./model.js";
import { $, ask, events } from "./server.js";
import { allSettings, onSetting } from "./settings.js";

const ENDS = ["done", "error", "cancelled"];
const root = $(".rm-result");
let job = null; // the secret that cancels it
let sending = null; // what ends it before there is one

function show(found) {
  root.dataset.state = found.state;
  const part = found.state === "done" ? 1 : (found.step || 0) / (found.steps || 1);
  $(".rm-bar > div").style.width = `${100 * part}%`;
  $(".rm-said").textContent = found.message || "";
}

// what went wrong is no news once something has changed
function forget() {
  if (["error", "cancelled"].includes(root.dataset.state)) show({ state: "idle" });
}

async function generate() {
  const why = missing();
  if (why) return show({ state: "error", message: why });
  $("#rm-generate").disabled = true;
  $("#rm-cancel").disabled = false;
  show({ state: "sending", message: "sending the drawing" });
  sending = new AbortController();
  const { signal } = sending;
  let last = { state: "idle" };
  const [state, settings] = [snapshot(), allSettings()];
  try {
    for await (const event of events((await ask("generate", { drawing: drawing(), settings }, signal)).body)) {
      if (event.job) job = event.job;
      else show((last = event));
      $("#rm-cancel").disabled = ENDS.includes(last.state);
    }
    if (!ENDS.includes(last.state)) throw new Error("the server has ended the generation");
    if (last.state === "done") addResult(last, state, settings);
  } catch (error) {
    if (signal.aborted) show({ state: "cancelled", message: "cancelled" });
    else show({ state: "error", message: String(error.message || error) });
  } finally {
    job = null;
    $("#rm-generate").disabled = false;
    $("#rm-cancel").disabled = true;
  }
}

$("#rm-generate").onclick = generate;
$("#rm-cancel").onclick = () => {
  if (!job) return sending.abort();
  ask("cancel", { job }).catch((error) => show({ state: "error", message: error.message }));
};
onChange(forget);
onSetting(forget);
