// The line below the image: what can be done now, or what went wrong; and what a screen reader is told.

import { $ } from "./server.js";

export const hint = $(".rm-hint");
let usual = () => [];

// what is said where nothing went wrong: a list of texts and elements
export const hintIs = (call) => (usual = call);

function put(parts) {
  const plain = !hint.childElementCount && parts.every((part) => typeof part === "string");
  if (!plain || hint.textContent !== parts.join("")) hint.replaceChildren(...parts); // the same text is not read out again
}

// an error stays until the next action
export function say(error) {
  if (!error && hint.querySelector(".rm-sending")) return; // it can still be cancelled
  hint.classList.toggle("rm-error", Boolean(error));
  put(error ? [String(error.message || error)] : usual());
}

// what is good to know, until the next action
export function note(text) {
  hint.classList.remove("rm-error");
  put([text]);
}

// to who does not see the image
export const speak = (text) => ($("#rm-spoken").textContent = text);
