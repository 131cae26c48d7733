// The drawing page: requests a preview while you draw, and an answer that is logged when you pause.

import * as answers from "/page/answer.js";
import * as key from "/page/key.js";
import * as canvas from "/page/canvas.js";
import * as session from "/page/session.js";

// The shortest time between two previews.
const PREVIEW_MS = 90;
// A pause of this length ends a drawing.
const PAUSE_MS = 800;
const INITIAL_MESSAGE = "Draw with mouse, finger or pen, or paste a picture.";

const element = (id) => document.getElementById(id);
// dirty: there is ink; asking: a request is in flight, and `again` follows it; turn: number of the drawing, so that an answer to an
// earlier one is not shown; id: of the answer that can be corrected; drawn: id of the last answer for this drawing
const state = { dirty: false, asking: false, again: null, turn: 0, id: null, drawn: null, pause: 0, lastPreview: 0, version: null };

function clear() {
  canvas.clear();
  clearTimeout(state.pause);
  state.turn += 1;
  Object.assign(state, { dirty: false, again: null, drawn: null });
  disableCorrection();
  answers.showNothing(INITIAL_MESSAGE);
}

canvas.listen({
  stroke() {
    state.dirty = true;
    clearTimeout(state.pause);
    disableCorrection();
    if (performance.now() - state.lastPreview < PREVIEW_MS) return;
    state.lastPreview = performance.now();
    request("preview");
  },
  lift() {
    request("preview");
    clearTimeout(state.pause);
    state.pause = setTimeout(() => request("answer"), PAUSE_MS);
  },
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
  await send(await canvas.toPng(), kind, turn);
  state.asking = false;
  const again = state.again;
  state.again = null;
  if (again) request(again);
}

async function send(picture, kind, turn) {
  let response, answer;
  try {
    response = await key.fetchWithKey(`/classify_file${kind === "preview" ? "?preview=true" : ""}`, { method: "POST", body: picture });
    answer = await response.json();
  } catch {
    if (turn === state.turn) answers.showNothing("The service does not answer. Try again in a moment.");
    return null;
  }
  if (turn !== state.turn) return null;
  if (!response.ok) {
    disableCorrection();
    const problem = response.status === 401 ? "Enter a valid API key below." : sentence(answer.error);
    answers.showNothing(kind === "preview" && canvas.isDrawing() ? "Go on …" : problem);
    return null;
  }
  answers.show(answer);
  if (answer.model_version !== state.version) showVersion();
  if (answer.id !== null && !canvas.isDrawing()) {
    session.remember(answer, state.drawn);
    state.drawn = answer.id;
    offerCorrection(answer);
  }
  return answer;
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

// Sends a picture from a file or the clipboard unchanged, and shows it on the canvas.
async function sendPicture(picture) {
  clear();
  const turn = state.turn;
  try {
    await canvas.showPicture(picture);
  } catch {
    // The service's answer names the error.
  }
  element("message").textContent = "Looking at the picture …";
  const typed = picture.type.startsWith("image/") ? picture : new Blob([picture], { type: "application/octet-stream" });
  await send(typed, "answer", turn);
}

// Classifies the pixels of a sample without logging them, because its label is known.
async function trySample(sample) {
  clear();
  const turn = state.turn;
  await canvas.showImage(sample.image);
  const original = document.createElement("canvas");
  original.width = original.height = 28;
  original.getContext("2d").putImageData(canvas.toImageData(sample.image), 0, 0);
  const answer = await send(await new Promise((resolve) => original.toBlob(resolve, "image/png")), "preview", turn);
  if (answer) element("message").append(answer.digit === sample.label ? ` Right: it is ${answers.article(sample.label)}.` : ` Wrong: it is ${answers.article(sample.label)}.`);
}

async function showAgain(answer) {
  clear();
  await canvas.showImage(answer.image);
  answers.show(answer);
  state.drawn = answer.id;
  offerCorrection(answer);
}

function offerCorrection(answer) {
  state.id = answer.id;
  element("thanks").textContent = "label" in answer ? `You said it was ${answers.article(answer.label)}.` : "";
  buttons().forEach((button, digit) => {
    button.disabled = false;
    button.setAttribute("aria-pressed", String(answer.label === digit));
  });
}

function disableCorrection() {
  if (state.id === null && buttons()[0].disabled) return;
  state.id = null;
  element("thanks").textContent = "";
  buttons().forEach((button) => {
    button.disabled = true;
    button.setAttribute("aria-pressed", "false");
  });
}

async function correct(digit) {
  const id = state.id;
  if (id === null) return;
  let error = "The service does not answer. Try again in a moment.";
  try {
    const body = JSON.stringify({ id, digit, source: "page" });
    const response = await key.fetchWithKey("/feedback", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    error = response.ok ? null : sentence((await response.json()).error);
  } catch {
    // Reported below.
  }
  if (error === null) session.correct(id, digit);
  if (id !== state.id) return;
  buttons().forEach((button, other) => button.setAttribute("aria-pressed", String(error === null && other === digit)));
  element("thanks").textContent = error ?? `Noted: it was ${answers.article(digit)}. Thank you.`;
}

function buttons() {
  return [...element("digits").children];
}

for (let digit = 0; digit < 10; digit += 1) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = digit;
  // `disableCorrection` returns early when the first button is disabled.
  button.disabled = digit > 0;
  button.addEventListener("click", () => correct(digit));
  element("digits").append(button);
}

element("file").addEventListener("change", (event) => {
  if (event.target.files.length) sendPicture(event.target.files[0]);
  event.target.value = "";
});
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
  if (["Delete", "Backspace", "Escape"].includes(event.key)) clear();
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
  answers.setCoverage(about.conformal);
  if (about.model_version === state.version) return;
  state.version = about.model_version;
  const accuracy = about.metrics?.test_accuracy;
  line.textContent = `version ${about.model_version}${about.recipe?.name ? `, ${about.recipe.name}` : ""}`;
  if (accuracy) line.append(`, ${(100 * accuracy).toFixed(2)} % right on test images`);
  if (about.run_url) {
    const link = document.createElement("a");
    link.href = about.run_url;
    link.textContent = "its training run";
    line.append(" · ", link);
  }
  session.showSamples(trySample);
}

key.onKey(showVersion);
session.onOpen(showAgain);
clear();
showVersion();
