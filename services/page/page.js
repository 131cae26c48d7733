"use strict";
// The drawing page: sends the canvas as a PNG while you draw (a preview) and once more when you pause (an answer that is logged).

const PREVIEW_MS = 90; // at most one preview per this time
const PAUSE_MS = 700; // a pause this long ends a drawing

const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const paper = canvas.getContext("2d", { willReadFrequently: true });
const state = { drawing: false, dirty: false, asking: false, again: false, turn: 0, id: null, pause: 0, last: null, lastPreview: 0 };

function clear() {
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  clearTimeout(state.pause);
  state.turn += 1;
  Object.assign(state, { dirty: false, again: false, id: null });
  showNothing("Draw with mouse, finger or pen, or paste a picture.");
}

function position(event) {
  const box = canvas.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * canvas.width) / box.width, y: ((event.clientY - box.top) * canvas.height) / box.height };
}

function stroke(from, to) {
  paper.strokeStyle = document.querySelector("input[name=tool]:checked").value === "pen" ? "#111" : "#fff";
  paper.lineWidth = Number(element("size").value) * (paper.strokeStyle === "#ffffff" ? 1.5 : 1);
  paper.lineCap = paper.lineJoin = "round";
  paper.beginPath();
  paper.moveTo(from.x, from.y);
  paper.lineTo(to.x, to.y);
  paper.stroke();
  Object.assign(state, { dirty: true, id: null });
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  clearTimeout(state.pause);
  state.drawing = true;
  state.last = position(event);
  stroke(state.last, state.last);
});

canvas.addEventListener("pointermove", (event) => {
  if (!state.drawing) return;
  for (const point of event.getCoalescedEvents?.() ?? [event]) {
    const next = position(point);
    stroke(state.last, next);
    state.last = next;
  }
  preview();
});

function lift() {
  if (!state.drawing) return;
  state.drawing = false;
  preview();
  clearTimeout(state.pause);
  state.pause = setTimeout(() => ask(false), PAUSE_MS);
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);

function preview() {
  if (performance.now() - state.lastPreview < PREVIEW_MS && state.drawing) return;
  state.lastPreview = performance.now();
  ask(true);
}

// One question at a time: while one is under way, only the newest that comes up is kept.
async function ask(isPreview) {
  if (!state.dirty) return;
  if (state.asking) {
    state.again = state.again === "answer" || !isPreview ? "answer" : "preview";
    return;
  }
  state.asking = true;
  const turn = state.turn;
  const picture = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  await send(picture, isPreview, turn);
  state.asking = false;
  const again = state.again;
  state.again = false;
  if (again) ask(again === "preview");
}

async function send(picture, isPreview, turn) {
  try {
    const response = await fetch(`/classify_file${isPreview ? "?preview=true" : ""}`, { method: "POST", body: picture });
    const answer = await response.json();
    if (turn !== state.turn) return;
    if (response.ok) show(answer);
    else showNothing(isPreview && state.drawing ? "Go on …" : answer.error);
  } catch {
    if (turn === state.turn) showNothing("The service does not answer.");
  }
}

function show(answer) {
  element("digit").textContent = answer.digit;
  element("words").textContent = words(answer);
  answer.probabilities.forEach((probability, digit) => bar(digit, probability, digit === answer.digit));
  showSeen(answer.image);
  state.id = answer.id;
  element("correction").hidden = answer.id === null;
  element("thanks").textContent = "";
  document.querySelectorAll("#digits button").forEach((button) => button.setAttribute("aria-pressed", "false"));
}

function words(answer) {
  const percent = Math.min(99.9, 100 * answer.probability).toFixed(1);
  if (answer.probability >= 0.95) return `That is a ${answer.digit} (${percent} %).`;
  const second = answer.probabilities.map((p, digit) => [p, digit]).sort((a, b) => b[0] - a[0])[1][1];
  if (answer.probability >= 0.7) return `Probably a ${answer.digit} (${percent} %), or else a ${second}.`;
  return `Not sure: perhaps a ${answer.digit} (${percent} %), perhaps a ${second}.`;
}

function showNothing(sentence) {
  element("digit").textContent = "?";
  element("words").textContent = sentence;
  for (let digit = 0; digit < 10; digit += 1) bar(digit, 0, false);
  showSeen(null);
  state.id = null;
  element("correction").hidden = true;
}

function bar(digit, probability, isBest) {
  const line = element("bars").children[digit];
  line.classList.toggle("best", isBest);
  line.querySelector(".fill").style.width = `${100 * probability}%`;
  line.querySelector(".share").textContent = probability ? `${(100 * probability).toFixed(1)} %` : "";
}

function showSeen(image) {
  const seen = element("seen").getContext("2d");
  const pixels = seen.createImageData(28, 28);
  for (let index = 0; index < 784; index += 1) {
    const ink = image ? image[Math.floor(index / 28)][index % 28] : 0;
    pixels.data.set([ink, ink, ink, 255], 4 * index);
  }
  seen.putImageData(pixels, 0, 0);
}

async function correct(digit, button) {
  if (state.id === null) return;
  const response = await fetch("/feedback", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ id: state.id, digit, source: "page" }),
  });
  document.querySelectorAll("#digits button").forEach((other) => other.setAttribute("aria-pressed", String(response.ok && other === button)));
  element("thanks").textContent = response.ok ? `Noted: it was a ${digit}. Thank you.` : (await response.json()).error;
}

// A picture from a file or the clipboard goes to the service as it is, and is shown on the paper.
async function take(picture) {
  clear();
  const turn = state.turn;
  try {
    const bitmap = await createImageBitmap(picture);
    const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    paper.drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  } catch {
    // the service says what is wrong with it
  }
  element("words").textContent = "Looking at the picture …";
  const typed = picture.type.startsWith("image/") ? picture : new Blob([picture], { type: "application/octet-stream" });
  await send(typed, false, turn);
}

element("file").addEventListener("change", (event) => {
  if (event.target.files.length) take(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
  if (file) take(file);
});
canvas.addEventListener("dragover", (event) => event.preventDefault());
canvas.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
element("clear").addEventListener("click", clear);
canvas.addEventListener("keydown", (event) => {
  if (event.key === "Delete" || event.key === "Backspace" || event.key === "Escape") clear();
});

for (let digit = 0; digit < 10; digit += 1) {
  const line = document.createElement("li");
  line.innerHTML = `<span>${digit}</span><span class="track"><span class="fill"></span></span><span class="share"></span>`;
  element("bars").append(line);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = digit;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => correct(digit, button));
  element("digits").append(button);
}

async function showVersion() {
  const about = await (await fetch("/about")).json();
  if (about.model_version === null) {
    element("version").textContent = about.trouble;
    return setTimeout(showVersion, 3000);
  }
  const accuracy = about.metrics?.test_accuracy;
  element("version").textContent = `version ${about.model_version}${about.recipe?.name ? `, ${about.recipe.name}` : ""}`;
  if (accuracy) element("version").append(`, ${(100 * accuracy).toFixed(2)} % on test images`);
  if (about.run_link) {
    const link = document.createElement("a");
    link.href = about.run_link;
    link.textContent = "its run";
    element("version").append(" · ", link);
  }
}

clear();
showVersion();
