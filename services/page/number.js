// The number in large type, line by line, with its confidence, and the button that copies it.

import { digitsOf, isDoubtful, percent, piecesOf, textOf } from "/page/reading.js";

const number = document.getElementById("number");
const copy = document.getElementById("copy");
const COPIED_MS = 2000;

let choose = () => {};
let shown = null;
let timer = 0;

// Calls listener(index) when a digit is chosen.
export function onChoose(listener) {
  choose = listener;
}

export function show(reading) {
  shown = reading;
  const digits = digitsOf(reading);
  number.replaceChildren(...reading.lines.map((line) => row(line, digits, reading.lines.length > 1)));
  number.style.setProperty("--length", Math.max(...reading.lines.map((line) => line.text.length)));
  number.classList.toggle("many", digits.length > 1);
  number.classList.toggle("several", reading.lines.length > 1);
  number.classList.toggle("uncertain", digits.length === 1 && isDoubtful(digits[0]));
  const isNone = digits.length === 1 && !digits[0].is_digit && !("label" in digits[0]);
  if (isNone) number.replaceChildren("?");
  copy.hidden = isNone;
  reset();
}

export function showNothing() {
  shown = null;
  number.replaceChildren("?");
  number.className = "uncertain";
  copy.hidden = true;
}

export function mark(chosen) {
  number.querySelectorAll("[data-index]").forEach((span) => span.classList.toggle("chosen", Number(span.dataset.index) === chosen));
}

function row(line, digits, hasConfidence) {
  const row = document.createElement("span");
  row.className = "line";
  const text = document.createElement("span");
  text.append(...piecesOf(line).map((piece) => (piece.digit ? digitSpan(piece, digits.indexOf(piece.digit)) : piece.text)));
  row.append(text);
  if (hasConfidence) {
    const confidence = document.createElement("span");
    confidence.className = "confidence";
    confidence.textContent = `${percent(line.confidence)}${line.uncertain ? ", not sure" : ""}`;
    row.append(" ", confidence);
  }
  return row;
}

// The boxes are what keyboards and screen readers choose by; a click on the number does the same.
function digitSpan({ text, digit }, index) {
  const span = document.createElement("span");
  span.dataset.index = index;
  span.textContent = text;
  span.classList.toggle("doubtful", isDoubtful(digit));
  span.addEventListener("click", () => choose(index));
  return span;
}

function reset() {
  clearTimeout(timer);
  copy.textContent = "Copy";
}

copy.addEventListener("click", async () => {
  const isCopied = await write(textOf(shown));
  copy.textContent = isCopied ? "Copied" : "Not allowed";
  clearTimeout(timer);
  timer = setTimeout(reset, COPIED_MS);
});

// Browsers have a clipboard only on pages of this machine or over HTTPS; elsewhere they copy what is selected.
async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    copy.focus();
    return isCopied;
  }
}
