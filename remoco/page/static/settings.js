// The settings: a field for each that the server names, and what they are now.

import { $, facts, clamp, copyOf } from "./server.js";

export const settings = Object.fromEntries(facts.settings.map(({ name, value }) => [name, value]));
const PREVIEWED = ["frames", "fps", "size", "seed"]; // a preview depends on these
const watchers = [];

export const previewed = () => Object.fromEntries(PREVIEWED.map((name) => [name, settings[name]]));
export const onSetting = (call) => watchers.push(call);

function set(name, value) {
  if (settings[name] === value) return;
  settings[name] = value;
  if (PREVIEWED.includes(name)) watchers.forEach((call) => call(name));
}

function numberField({ name, label, value, least, most, step }) {
  const field = copyOf("#rm-number");
  const [number, range] = [field.querySelector("[type=number]"), field.querySelector("[type=range]")];
  const reset = field.querySelector(".rm-reset");
  for (const input of [number, range]) Object.assign(input, { min: least, max: most, step });
  range.setAttribute("aria-label", `${label}, slider`);
  reset.setAttribute("aria-label", `${label}: back to ${value}`);
  const show = (now) => {
    reset.classList.toggle("rm-changed", now !== value);
    range.value = now;
    set(name, now);
  };
  // a number may be off the slider's steps, but a whole one stays whole
  const fitting = (now) => clamp(Number.isInteger(step) ? Math.round(now) : now, least, most);
  number.oninput = () => number.value !== "" && Number(number.value) === fitting(Number(number.value)) && show(Number(number.value));
  number.onchange = () => {
    if (number.value !== "") show(fitting(Number(number.value)));
    number.value = settings[name];
  };
  range.oninput = () => show(Number((number.value = range.value)));
  reset.onclick = () => show((number.value = value));
  number.value = value;
  show(value);
  if (name === "seed") seedField(range, number, show, most);
  return field;
}

// no slider for a seed: a button that draws another one
function seedField(range, number, show, most) {
  const other = document.createElement("button");
  Object.assign(other, { type: "button", className: "rm-button", id: "rm-again", textContent: "Other seed" });
  other.onclick = () => show((number.value = Math.floor(Math.random() * Math.min(2 ** 31, most))));
  range.replaceWith(other);
}

function choiceField({ name, value, choices }) {
  const field = copyOf("#rm-choice");
  const select = field.querySelector("select");
  select.append(...choices.map((choice) => new Option(choice)));
  select.value = value;
  select.onchange = () => set(name, select.value);
  return field;
}

$("#rm-checkpoint").textContent = facts.checkpoint;
for (const setting of facts.settings) {
  const field = setting.choices.length ? choiceField(setting) : numberField(setting);
  field.id = `rm-${setting.name}`;
  const label = field.querySelector("label");
  label.textContent = setting.label;
  label.htmlFor = field.querySelector("input, select").id = `rm-${setting.name}-value`;
  $(".rm-settings").append(field);
}
