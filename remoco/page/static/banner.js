// A line above the image where the model was trained on nothing like it.

import { drawing, model, onChange } from "./model.js";
import { $, ask } from "./server.js";

const banner = $(".rm-banner");
let known = null; // the image that was asked for

onChange(async () => {
  const { image } = model;
  if (image === known) return;
  known = image;
  let line = null;
  if (image) line = (await (await ask("unseen", { image: drawing().image })).json().catch(() => ({}))).line;
  if (image !== known) return; // another one was opened since
  banner.textContent = line || "";
  banner.hidden = !line;
});
