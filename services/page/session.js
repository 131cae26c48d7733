// The answers of this session, kept until the tab is closed, and samples to try.

import { article } from "/page/answer.js";
import { fetchWithKey } from "/page/key.js";
import { toImageData } from "/page/canvas.js";

const MAX_ANSWERS = 24;
const element = (id) => document.getElementById(id);
// Newest first.
const answers = load();

function load() {
  try {
    return JSON.parse(sessionStorage.getItem("answers")) ?? [];
  } catch {
    return [];
  }
}

// Adds an answer, or puts it in the place of the one it replaces (more strokes of the same drawing).
export function remember(answer, replaced) {
  const place = answers.findIndex((one) => one.id === replaced);
  if (place >= 0) answers.splice(place, 1, answer);
  else answers.unshift(answer);
  answers.length = Math.min(answers.length, MAX_ANSWERS);
  save();
}

export function correct(id, digit) {
  const answer = answers.find((one) => one.id === id);
  if (answer) answer.label = digit;
  save();
}

function save() {
  try {
    sessionStorage.setItem("answers", JSON.stringify(answers));
  } catch {
    // Without session storage the history is lost at a reload.
  }
  draw();
}

let open = () => {};

export function onOpen(listener) {
  open = listener;
  draw();
}

function draw() {
  element("session").hidden = answers.length === 0;
  const corrected = answers.filter((one) => "label" in one);
  const right = corrected.filter((one) => one.label === one.digit).length;
  element("tally").textContent = corrected.length ? `you judged ${corrected.length}, ${right} ${right === 1 ? "was" : "were"} right` : "";
  element("history").replaceChildren(...answers.map((answer) => thumbnail(answer.image, caption(answer), title(answer), () => open(answer))));
}

function caption(answer) {
  if (!("label" in answer)) return answer.uncertain ? `${answer.digit}?` : `${answer.digit}`;
  return answer.label === answer.digit ? `${answer.digit} ✓` : `${answer.digit} → ${answer.label}`;
}

function title(answer) {
  const label = "label" in answer ? `, and you said it was ${article(answer.label)}` : "";
  return `answered ${answer.digit}${answer.uncertain ? ", not sure" : ""}${label}; show it again`;
}

function thumbnail(image, text, title, listener) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = title;
  button.setAttribute("aria-label", title);
  const picture = document.createElement("canvas");
  picture.width = picture.height = 28;
  picture.getContext("2d").putImageData(toImageData(image), 0, 0);
  button.append(picture, text);
  button.addEventListener("click", listener);
  return button;
}

export async function showSamples(listener) {
  const response = await fetchWithKey("/samples");
  if (!response.ok) return;
  const { samples } = await response.json();
  const buttons = samples.map((sample) => thumbnail(sample.image, "", `try this ${sample.label}`, () => listener(sample)));
  element("samples").replaceChildren(...buttons);
}
