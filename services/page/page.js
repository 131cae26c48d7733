// The drawing page: asks the service while you draw (a preview) and once more when you pause (an answer that is logged).

import * as answers from "/page/answer.js";
import * as key from "/page/key.js";
import * as paper from "/page/paper.js";
import * as visit from "/page/visit.js";

const PREVIEW_MS = 90; // at most one preview per this time
const PAUSE_MS = 800; // a pause this long ends a drawing
const INVITATION = "Draw with mouse, finger or pen, or paste a picture.";

const element = (id) => document.getElementById(id);
// dirty: there is ink; turn: counts papers, so that an answer to an earlier one is not shown; id: of the answer that can be corrected
const state = { dirty: false, asking: false, again: null, turn: 0, id: null, drawn: null, pause: 0, lastPreview: 0, version: null };

function clear() {
  paper.clear();
  clearTimeout(state.pause);
  state.turn += 1;
  Object.assign(state, { dirty: false, again: null, drawn: null });
  forget();
  answers.showNothing(INVITATION);
}

paper.listen({
  stroke() {
    state.dirty = true;
    clearTimeout(state.pause);
    forget();
    if (performance.now() - state.lastPreview < PREVIEW_MS) return;
    state.lastPreview = performance.now();
    ask("preview");
  },
  lift() {
    ask("preview");
    clearTimeout(state.pause);
    state.pause = setTimeout(() => ask("answer"), PAUSE_MS);
  },
});

// One question at a time: while one is under way, only the newest that comes up is kept.
async function ask(kind) {
  if (!state.dirty) return;
  if (state.asking) {
    state.again = state.again === "answer" ? "answer" : kind;
    return;
  }
  state.asking = true;
  const turn = state.turn;
  await send(await paper.toPng(), kind, turn);
  state.asking = false;
  const again = state.again;
  state.again = null;
  if (again) ask(again);
}

async function send(picture, kind, turn) {
  let response, answer;
  try {
    response = await key.ask(`/classify_file${kind === "preview" ? "?preview=true" : ""}`, { method: "POST", body: picture });
    answer = await response.json();
  } catch {
    if (turn === state.turn) answers.showNothing("The service does not answer. Try again in a moment.");
    return null;
  }
  if (turn !== state.turn) return null;
  if (!response.ok) {
    forget();
    answers.showNothing(kind === "preview" && paper.isDrawing() ? "Go on …" : sentence(answer.error));
    return null;
  }
  answers.show(answer);
  if (answer.model_version !== state.version) showVersion();
  if (answer.id !== null && !paper.isDrawing()) {
    visit.remember(answer, state.drawn);
    state.drawn = answer.id;
    askBack(answer);
  }
  return answer;
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

// A picture from a file or the clipboard goes to the service as it is, and is shown on the paper.
async function take(picture) {
  clear();
  const turn = state.turn;
  try {
    await paper.showPicture(picture);
  } catch {
    // the service says what is wrong with it
  }
  element("message").textContent = "Looking at the picture …";
  const typed = picture.type.startsWith("image/") ? picture : new Blob([picture], { type: "application/octet-stream" });
  await send(typed, "answer", turn);
}

// A sample is answered from its very pixels, and not logged: its label is known.
async function tryOut(sample) {
  clear();
  const turn = state.turn;
  await paper.showImage(sample.image);
  const original = document.createElement("canvas");
  original.width = original.height = 28;
  original.getContext("2d").putImageData(paper.toImageData(sample.image), 0, 0);
  const answer = await send(await new Promise((resolve) => original.toBlob(resolve, "image/png")), "preview", turn);
  if (answer) element("message").append(answer.digit === sample.label ? ` Right: it is ${answers.article(sample.label)}.` : ` Wrong: it is ${answers.article(sample.label)}.`);
}

async function showAgain(answer) {
  clear();
  await paper.showImage(answer.image);
  answers.show(answer);
  state.drawn = answer.id;
  askBack(answer);
}

function askBack(answer) {
  state.id = answer.id;
  element("thanks").textContent = "label" in answer ? `You said it was ${answers.article(answer.label)}.` : "";
  buttons().forEach((button, digit) => {
    button.disabled = false;
    button.setAttribute("aria-pressed", String(answer.label === digit));
  });
}

function forget() {
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
    const response = await key.ask("/feedback", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    error = response.ok ? null : sentence((await response.json()).error);
  } catch {
    // said below
  }
  if (error === null) visit.correct(id, digit);
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
  button.disabled = digit > 0; // `forget` disables the rest
  button.addEventListener("click", () => correct(digit));
  element("digits").append(button);
}

element("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
  if (file) take(file);
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
element("clear").addEventListener("click", clear);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=password]")) return;
  if (["Delete", "Backspace", "Escape"].includes(event.key)) clear();
  else if (event.key === "p" || event.key === "P") paper.choose("pen");
  else if (event.key === "e" || event.key === "E") paper.choose("eraser");
  else if (/^[0-9]$/.test(event.key)) correct(Number(event.key));
});

async function showVersion() {
  const line = element("version");
  let response, about;
  try {
    response = await key.ask("/about");
    about = await response.json();
  } catch {
    return void setTimeout(showVersion, 3000);
  }
  if (!response.ok) {
    line.textContent = sentence(about.error);
    if (response.status !== 401) setTimeout(showVersion, 3000); // a new key is looked at when it is entered
    return;
  }
  if (about.model_version === null) {
    line.textContent = sentence(about.warning);
    return void setTimeout(showVersion, 3000);
  }
  answers.state(about.conformal);
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
  visit.showSamples(tryOut);
}

key.onKey(showVersion);
visit.onOpen(showAgain);
clear();
showVersion();
