// The page: requests a preview while you write, and an answer that is logged when you pause.

import * as boxes from "/page/boxes.js";
import * as canvas from "/page/canvas.js";
import * as correction from "/page/correction.js";
import * as detail from "/page/detail.js";
import * as explanation from "/page/explanation.js";
import * as key from "/page/key.js";
import * as number from "/page/number.js";
import { article, describe, digitsOf, isDoubtful, single } from "/page/reading.js";
import * as session from "/page/session.js";

// The shortest time between two previews.
const PREVIEW_MS = 90;
// A pause of this length ends a drawing.
const PAUSE_MS = 1000;
const INITIAL_MESSAGE = matchMedia("(pointer: coarse)").matches
  ? "Write with finger or pen, or take a photo."
  : "Write with mouse, finger or pen, or drop or paste a picture.";
const NO_ANSWER = "The service does not answer. Try again in a moment.";

const element = (id) => document.getElementById(id);
// dirty: there is ink; asking: a request is in flight, and `again` follows it; turn: number of the drawing, so that an answer to an
// earlier one is not shown; reading: what is shown; chosen: its digit that is shown in detail; kept: whether somebody chose it; logged: the
// last logged reading of this drawing
const state = { dirty: false, asking: false, again: null, turn: 0, reading: null, chosen: 0, kept: false, logged: null, pause: 0, lastPreview: 0 };
// What the served version says of itself.
const served = { version: null, coverage: null };

function clear() {
  canvas.clear();
  clearTimeout(state.pause);
  state.turn += 1;
  Object.assign(state, { dirty: false, again: null, kept: false, logged: null });
  showNothing(INITIAL_MESSAGE);
}

function showNothing(message) {
  state.reading = null;
  for (const part of [number, detail]) part.showNothing();
  boxes.show(null);
  correction.disable();
  explanation.offer(null);
  say(message, "");
}

function say(message, note) {
  element("message").textContent = message;
  element("note").textContent = note;
}

// Shows a reading, and in detail the digit that was chosen before, or else the first that is doubtful.
function show(reading) {
  const digits = digitsOf(reading);
  const isKept = state.kept && state.reading && digitsOf(state.reading).length === digits.length;
  state.reading = reading;
  refresh();
  choose(isKept ? state.chosen : Math.max(0, digits.findIndex(isDoubtful)));
}

function refresh() {
  const { message, note } = describe(state.reading, served.coverage);
  number.show(state.reading);
  boxes.show(state.reading);
  say(message, note);
}

function choose(index) {
  const digit = digitsOf(state.reading)[index];
  state.chosen = index;
  for (const part of [boxes, number]) part.mark(index);
  detail.show(state.reading, index);
  explanation.offer(digit.image);
  if (digit.id !== null && !canvas.isDrawing()) correction.offer(digit);
  else correction.disable();
}

canvas.listen({
  stroke() {
    Object.assign(state, { dirty: true, kept: false });
    clearTimeout(state.pause);
    correction.disable();
    boxes.fade();
    if (performance.now() - state.lastPreview < PREVIEW_MS) return;
    state.lastPreview = performance.now();
    request("preview");
  },
  lift() {
    request("preview");
    clearTimeout(state.pause);
    state.pause = setTimeout(() => request("answer"), PAUSE_MS);
  },
  tap: boxes.tap,
});

// Sends one request at a time; while one is in flight, only the newest is kept.
async function request(kind) {
  if (!state.dirty) return;
  if (state.asking) {
    state.again = state.again === "answer" ? "answer" : kind;
    return;
  }
  state.asking = true;
  const turn = state.turn;
  await read(await canvas.toPng(), kind, turn, canvas.extent());
  state.asking = false;
  const again = state.again;
  state.again = null;
  if (again) request(again);
}

// Reads the numbers in a picture; the boxes refer to `extent`, its width and height.
async function read(picture, kind, turn, extent) {
  const answer = await send(`/read${kind === "preview" ? "?preview=true" : ""}`, picture, turn);
  if (!answer) return;
  const reading = { ...answer, ...extent };
  show(reading);
  if (digitsOf(reading)[0].id === null || canvas.isDrawing()) return;
  session.remember(reading, state.logged);
  state.logged = reading;
}

// The answer to a picture; null if there is none, or it is too late.
async function send(address, picture, turn) {
  let response, answer;
  try {
    response = await key.fetchWithKey(address, { method: "POST", body: picture });
    answer = await response.json();
  } catch {
    if (turn === state.turn) showNothing(NO_ANSWER);
    return null;
  }
  if (turn !== state.turn) return null;
  if (!response.ok) {
    const problem = response.status === 401 ? "Enter a valid API key above." : sentence(answer.error);
    showNothing(canvas.isDrawing() ? "Go on …" : problem);
    return null;
  }
  if (answer.model_version !== served.version) showVersion();
  return answer;
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

// Sends a picture from a file, the camera or the clipboard unchanged, and shows it on the canvas.
async function sendPicture(picture) {
  clear();
  const turn = state.turn;
  let extent = {};
  try {
    extent = await canvas.showPicture(picture);
  } catch {
    // The service's answer names the error.
  }
  say("Looking at the picture …", "");
  const typed = picture.type.startsWith("image/") ? picture : new Blob([picture], { type: "application/octet-stream" });
  await read(typed, "answer", turn, extent);
}

// Classifies the pixels of a sample without logging them, because its label is known.
async function trySample(sample) {
  clear();
  const turn = state.turn;
  await canvas.showImage(sample.image);
  const answer = await send("/classify_file?preview=true", await canvas.toSmallPng(sample.image), turn);
  if (!answer) return;
  show(single(answer));
  element("message").append(` ${answer.digit === sample.label ? "Right" : "Wrong"}: it is ${article(sample.label)}.`);
}

async function showAgain(reading) {
  clear();
  const turn = state.turn;
  await canvas.showReading(reading);
  if (turn !== state.turn) return;
  state.logged = reading;
  show(reading);
}

async function correct(digit) {
  const [reading, index] = [state.reading, state.chosen];
  const corrected = reading && digitsOf(reading)[index];
  if (!corrected || corrected.id === null) return;
  let error = NO_ANSWER;
  try {
    const body = JSON.stringify({ id: corrected.id, digit, source: "page" });
    const response = await key.fetchWithKey("/feedback", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    error = response.ok ? null : sentence((await response.json()).error);
  } catch {
    // Reported below.
  }
  if (error === null) {
    corrected.label = digit;
    session.save();
  }
  if (reading !== state.reading) return;
  const isFocused = boxes.hasFocus();
  refresh();
  for (const part of [boxes, number]) part.mark(state.chosen);
  if (isFocused) boxes.focus(state.chosen);
  if (index === state.chosen) correction.report(digit, error);
}

correction.onPress(correct);
for (const part of [boxes, number]) {
  part.onChoose((index) => {
    state.kept = true;
    choose(index);
  });
}

for (const input of [element("file"), element("camera")]) {
  input.addEventListener("change", () => {
    if (input.files.length) sendPicture(input.files[0]);
    input.value = "";
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
  if (file) sendPicture(file);
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) sendPicture(event.dataTransfer.files[0]);
});
element("clear").addEventListener("click", clear);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=password]")) return;
  // On a box they would be meant for its digit.
  const clears = boxes.hasFocus() ? ["Escape"] : ["Delete", "Backspace", "Escape"];
  if (clears.includes(event.key)) clear();
  else if (event.key === "p" || event.key === "P") canvas.choose("pen");
  else if (event.key === "e" || event.key === "E") canvas.choose("eraser");
  else if (/^[0-9]$/.test(event.key)) correct(Number(event.key));
});

async function showVersion() {
  const line = element("version");
  let response, about;
  try {
    response = await key.fetchWithKey("/about");
    about = await response.json();
  } catch {
    return void setTimeout(showVersion, 3000);
  }
  if (!response.ok) {
    line.textContent = sentence(about.error);
    // After a 401, `onKey` asks again.
    if (response.status !== 401) setTimeout(showVersion, 3000);
    return;
  }
  if (about.model_version === null) {
    line.textContent = sentence(about.warning);
    return void setTimeout(showVersion, 3000);
  }
  served.coverage = about.conformal?.coverage ?? null;
  if (about.model_version === served.version) return;
  served.version = about.model_version;
  const accuracy = about.metrics?.test_accuracy;
  line.textContent = `version ${about.model_version}${about.recipe?.name ? `, ${about.recipe.name}` : ""}`;
  if (accuracy) line.append(`, ${(100 * accuracy).toFixed(2)} % right on test images`);
  for (const [text, url] of [["its model card", about.version_url], ["its training run", about.run_url]]) {
    if (!url) continue;
    const link = document.createElement("a");
    link.href = url;
    link.textContent = text;
    line.append(" · ", link);
  }
  session.showSamples(trySample);
}

key.onKey(showVersion);
session.onOpen(showAgain);
clear();
showVersion();
