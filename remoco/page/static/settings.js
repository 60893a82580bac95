// The settings: a field for each that the server names (see form.py), and what they are now.

import { $, clamp, copyOf, facts } from "./server.js";

export const settings = Object.fromEntries(facts.settings.map(({ name, value }) => [name, value]));
const PREVIEWED = ["frames", "fps", "size", "fit", "seed"]; // a preview depends on these
const WORDS = { drawing: "as drawn" };
const watchers = [];

export const previewed = () => Object.fromEntries(PREVIEWED.map((name) => [name, settings[name]]));
export const isPreviewed = (name) => PREVIEWED.includes(name);
export const onSetting = (call) => watchers.push(call);
export const allSettings = () => ({ ...settings });

// of fields by name: sets one to a value of it, and passes over what is none
const fields = {};
export function setAll(values) {
  for (const [name, value] of Object.entries(values || {})) fields[name]?.(value);
}

function set(name, value) {
  if (settings[name] === value) return;
  settings[name] = value;
  watchers.forEach((call) => call(name));
}

function numberField({ name, label, value, least, most, slider, step, whole, words }) {
  const field = copyOf("#rm-number");
  const [number, range] = [field.querySelector("[type=number]"), field.querySelector("[type=range]")];
  const reset = field.querySelector(".rm-reset");
  const boxes = words.map((word) => wordBox(field, word));
  Object.assign(number, { min: least, max: most, step });
  const [from, to] = slider || [least, most];
  Object.assign(range, { min: from, max: to, step, value: (from + to) / 2, hidden: !slider });
  range.ariaLabel = `${label}, slider`;
  reset.ariaLabel = `${label}: back to ${WORDS[value] || value}`;
  const show = (now) => {
    const word = words.includes(now);
    number.disabled = range.disabled = word;
    boxes.forEach((box, i) => (box.checked = words[i] === now));
    if (word) number.value = "";
    else range.value = now;
    reset.classList.toggle("rm-changed", now !== value);
    set(name, now);
  };
  const fitting = (now) => clamp(whole ? Math.round(now) : now, least, most);
  number.oninput = () => {
    const now = Number(number.value);
    if (number.value !== "" && now === fitting(now)) show(now); // what is half typed is no value yet
  };
  number.onchange = () => {
    if (number.value !== "") show(fitting(Number(number.value)));
    number.value = settings[name];
  };
  range.oninput = () => show(Number((number.value = range.value)));
  reset.onclick = () => show((number.value = value));
  boxes.forEach((box, i) => {
    box.onchange = () => show(box.checked ? words[i] : (number.value = fitting(slider ? Number(range.value) : 0)));
  });
  number.value = value;
  show(value);
  fields[name] = (now) => {
    if (words.includes(now)) show(now);
    else if (typeof now === "number" && now === fitting(now)) show((number.value = now));
  };
  if (name === "seed") field.append(otherSeed(number, show, most));
  return field;
}

function wordBox(field, word) {
  const label = copyOf("#rm-word");
  label.querySelector("span").textContent = WORDS[word] || word;
  field.querySelector(".rm-words").append(label);
  return label.querySelector("input");
}

function otherSeed(number, show, most) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", className: "rm-button", id: "rm-again", textContent: "Other seed" });
  button.onclick = () => show((number.value = Math.floor(Math.random() * Math.min(2 ** 31, most))));
  return button;
}

function choiceField({ name, value, choices }) {
  const field = copyOf("#rm-choice");
  const select = field.querySelector("select");
  select.append(...choices.map((choice) => new Option(choice)));
  select.value = value;
  select.onchange = () => set(name, select.value);
  fields[name] = (now) => choices.includes(now) && set(name, (select.value = now));
  return field;
}

function textField({ name, value }) {
  const field = copyOf("#rm-text-field");
  const box = field.querySelector("textarea");
  box.value = value;
  box.oninput = () => set(name, box.value);
  fields[name] = (now) => typeof now === "string" && set(name, (box.value = now));
  return field;
}

$("#rm-checkpoint").textContent = facts.checkpoint;
$(".rm-protocol").textContent = facts.protocol;
$(".rm-panels").textContent = facts.panels;
const changes = ({ least, most, choices }) => (choices.length ? choices.length > 1 : least < most);
for (const setting of facts.settings.filter(changes)) {
  const field = setting.text ? textField(setting) : setting.choices.length ? choiceField(setting) : numberField(setting);
  field.id = `rm-${setting.name}`;
  const label = field.querySelector("label");
  label.textContent = setting.unit ? `${setting.label}, ${setting.unit}` : setting.label;
  label.htmlFor = field.querySelector("[type=number], select, textarea").id = `rm-${setting.name}-value`;
  $(".rm-settings").append(field);
}
