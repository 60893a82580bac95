// A line above the image where the model was trained on nothing like it.

import { model, onChange } from "./model.js";
import { $, ask } from "./server.js";

const banner = $(".rm-banner");
let known = null; // the image that was asked for

async function lineOf(url) {
  try {
    return (await (await ask("unseen", { image: url })).json()).line;
  } catch {
    return null; // what is wrong with the server or the picture is said where it is used
  }
}

onChange(async () => {
  const { image } = model;
  if (image === known) return;
  known = image;
  const line = image && (await lineOf(image.url));
  if (image !== known) return; // another one was opened since
  banner.textContent = line || "";
  banner.hidden = !line;
});
