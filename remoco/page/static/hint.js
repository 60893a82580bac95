// The line below the image: what can be done now, or what went wrong.

import { $ } from "./server.js";

export const hint = $(".rm-hint");
let usual = () => [];

// what is said where nothing went wrong: a list of texts and elements
export const hintIs = (call) => (usual = call);

// an error stays until the next action
export function say(error) {
  hint.classList.toggle("rm-error", Boolean(error));
  hint.replaceChildren(...(error ? [String(error.message || error)] : usual()));
}
