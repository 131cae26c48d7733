// The readings of this session, kept until the tab is closed, and samples to try.

import { fetchWithKey } from "/page/key.js";
import { article, digitsOf, isDoubtful, textOf, toImageData } from "/page/reading.js";

const MAX_READINGS = 24;
// A digit takes some 2 kB of the 5 MB that a browser stores.
const MAX_DIGITS = 500;
// Of a reading, so many are shown small.
const MAX_SHOWN = 6;
const element = (id) => document.getElementById(id);
// Newest first.
const readings = load();

function load() {
  try {
    return JSON.parse(sessionStorage.getItem("readings")) ?? [];
  } catch {
    return [];
  }
}

// Adds a reading, or puts it in the place of the one it replaces (more strokes of the same drawing).
export function remember(reading, replaced) {
  const place = readings.indexOf(replaced);
  if (place >= 0) readings.splice(place, 1, reading);
  else readings.unshift(reading);
  readings.length = Math.min(readings.length, MAX_READINGS);
  while (readings.length > 1 && readings.flatMap(digitsOf).length > MAX_DIGITS) readings.pop();
  save();
}

export function save() {
  try {
    sessionStorage.setItem("readings", JSON.stringify(readings));
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
  element("session").hidden = readings.length === 0;
  const corrected = readings.flatMap(digitsOf).filter((digit) => "label" in digit);
  const right = corrected.filter((digit) => digit.label === digit.digit).length;
  element("tally").textContent = corrected.length ? `you judged ${corrected.length}, ${right} ${right === 1 ? "was" : "were"} right` : "";
  element("history").replaceChildren(
    ...readings.map((reading) => thumbnail(digitsOf(reading).map((digit) => digit.image), caption(reading), title(reading), () => open(reading))),
  );
}

function caption(reading) {
  const digits = digitsOf(reading);
  const [before, after] = [reading.text, textOf(reading)].map(shorten);
  if (before !== after) return `${before} → ${after}`;
  if (digits.some((digit) => "label" in digit)) return `${after} ✓`;
  return digits.some(isDoubtful) ? `${after}?` : after;
}

function shorten(text) {
  const line = text.replaceAll("\n", " ");
  return line.length > 10 ? `${line.slice(0, 9)}…` : line;
}

function title(reading) {
  const doubt = digitsOf(reading).some(isDoubtful) ? ", not sure" : "";
  return `${textOf(reading).replaceAll("\n", ", ")}${doubt}; show it again`;
}

function thumbnail(images, text, title, listener) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = title;
  button.setAttribute("aria-label", title);
  const picture = document.createElement("canvas");
  const shown = images.slice(0, MAX_SHOWN);
  [picture.width, picture.height] = [28 * shown.length, 28];
  shown.forEach((image, index) => picture.getContext("2d").putImageData(toImageData(image), 28 * index, 0));
  button.append(picture, text);
  button.addEventListener("click", listener);
  return button;
}

export async function showSamples(listener) {
  const response = await fetchWithKey("/samples");
  if (!response.ok) return;
  const { samples } = await response.json();
  const buttons = samples.map((sample) => thumbnail([sample.image], "", `try this ${sample.label}`, () => listener(sample)));
  element("samples").replaceChildren(...buttons);
}
