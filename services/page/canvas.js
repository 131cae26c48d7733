// The canvas: drawing with mouse, finger, pen and keyboard, and showing a picture. It does not call the service.

import { digitsOf, toImageData } from "/page/reading.js";

const canvas = document.getElementById("canvas");
const paper = canvas.getContext("2d", { willReadFrequently: true });
const cursor = document.getElementById("cursor");
const size = document.getElementById("size");
// Width and height of the paper that is drawn on, and the longest side of a picture.
const WIDE = [1120, 640];
const NARROW = [960, 640];
const MAX_SIDE = 1600;
const narrow = matchMedia("(max-width: 50rem)");
// A pointer that moves by less, in CSS pixels, is a tap.
const TAP_PIXELS = 5;
// The pen that the arrow keys move.
const point = { x: 0, y: 0, down: false };
// The last position of the pointer while it draws, otherwise null; where it was pressed, until it has moved.
let last = null;
let pressed = null;

let listeners = { stroke: () => {}, lift: () => {}, tap: () => false };

// Calls stroke() for each segment drawn, lift() at the end of a line, and tap(x, y) with shares of width and height: true if it chose something.
export function listen(wanted) {
  listeners = wanted;
}

export function isDrawing() {
  return last !== null || point.down;
}

// Width and height, in the pixels of `toPng`.
export function extent() {
  return { width: canvas.width, height: canvas.height };
}

export function clear() {
  prepare(...(narrow.matches ? NARROW : WIDE));
  setPicture(false);
}

// An empty paper of this size; its place on the page has the same proportions.
function prepare(width, height) {
  canvas.width = width;
  canvas.height = height;
  canvas.parentElement.style.setProperty("--aspect", width / height);
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, width, height);
  Object.assign(point, { x: width / 2, y: height / 2, down: false });
  showCursor();
}

export function toPng() {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// A PNG of exactly the pixels of a 28 x 28 image.
export function toSmallPng(image) {
  const small = document.createElement("canvas");
  small.width = small.height = 28;
  small.getContext("2d").putImageData(toImageData(image), 0, 0);
  return new Promise((resolve) => small.toBlob(resolve, "image/png"));
}

export function choose(tool) {
  document.querySelector(`input[name=tool][value=${tool}]`).checked = true;
}

// Shows a picture of any size and returns its size; throws what the browser cannot decode.
export async function showPicture(picture) {
  const bitmap = await createImageBitmap(picture);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  prepare(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
  paper.imageSmoothingQuality = "high";
  paper.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  setPicture(true);
  return { width: bitmap.width, height: bitmap.height };
}

// A picture is not drawn on, and dark mode does not invert its colours.
function setPicture(is) {
  canvas.classList.toggle("picture", is);
  document.querySelectorAll("input[name=tool], #size").forEach((input) => (input.disabled = is));
}

// Shows a 28 x 28 image in dark ink in the middle of the paper.
export async function showImage(image) {
  const bitmap = await createImageBitmap(toImageData(image, (ink) => 255 - ink));
  paper.drawImage(bitmap, (canvas.width - canvas.height) / 2, 0, canvas.height, canvas.height);
}

// Shows the digits of a reading at their places, as the model saw them.
export async function showReading(reading) {
  // The size of a picture that the browser could not decode is unknown.
  if (!reading.width) return;
  const digits = digitsOf(reading);
  const bitmaps = await Promise.all(digits.map(({ image }) => createImageBitmap(toImageData(image, (ink) => 255 - ink))));
  const scale = MAX_SIDE / Math.max(reading.width, reading.height);
  prepare(Math.max(1, Math.round(reading.width * scale)), Math.max(1, Math.round(reading.height * scale)));
  digits.forEach(({ image, box }, index) => {
    paper.drawImage(bitmaps[index], ...inkBox(image), ...box.map((value) => value * scale));
  });
}

// Left, top, width and height of the ink in a 28 x 28 image.
function inkBox(image) {
  const rows = image.flatMap((row, index) => (row.some(Boolean) ? [index] : []));
  const columns = image[0].flatMap((_, index) => (image.some((row) => row[index]) ? [index] : []));
  return [columns[0], rows[0], columns.at(-1) - columns[0] + 1, rows.at(-1) - rows[0] + 1];
}

function erases() {
  return document.querySelector("input[name=tool]:checked").value === "eraser";
}

function stroke(from, to) {
  paper.strokeStyle = erases() ? "#fff" : "#111";
  paper.lineWidth = Number(size.value) * (erases() ? 1.5 : 1);
  paper.lineCap = paper.lineJoin = "round";
  paper.beginPath();
  paper.moveTo(from.x, from.y);
  // A line without length is not drawn.
  paper.lineTo(to.x + 0.01, to.y);
  paper.stroke();
  listeners.stroke();
}

function position(event) {
  const box = canvas.getBoundingClientRect();
  return { x: ((event.clientX - box.left) * canvas.width) / box.width, y: ((event.clientY - box.top) * canvas.height) / box.height };
}

function isPicture() {
  return canvas.classList.contains("picture");
}

canvas.addEventListener("pointerdown", (event) => {
  // A second finger does not draw.
  if (event.button !== 0 || !event.isPrimary || isPicture()) return;
  canvas.setPointerCapture(event.pointerId);
  last = position(event);
  pressed = { x: event.clientX, y: event.clientY };
});

canvas.addEventListener("pointermove", (event) => {
  if (last === null || !event.isPrimary) return;
  if (pressed && Math.hypot(event.clientX - pressed.x, event.clientY - pressed.y) < TAP_PIXELS) return;
  pressed = null;
  const points = event.getCoalescedEvents?.() ?? [];
  for (const one of points.length ? points : [event]) {
    const next = position(one);
    stroke(last, next);
    last = next;
  }
});

function lift(event) {
  if (last === null || !event.isPrimary) return;
  const [place, isTap] = [last, pressed !== null];
  last = pressed = null;
  if (isTap) {
    if (!erases() && listeners.tap(place.x / canvas.width, place.y / canvas.height)) return;
    stroke(place, place);
  }
  listeners.lift();
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("click", (event) => {
  if (!isPicture()) return;
  const place = position(event);
  listeners.tap(place.x / canvas.width, place.y / canvas.height);
});

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
  if (isPicture()) return;
  if (event.key in STEPS) move(STEPS[event.key], event.shiftKey ? 7 : 28);
  else if (event.key === " ") press();
  else return;
  // Otherwise the page scrolls.
  event.preventDefault();
});
canvas.addEventListener("focus", showCursor);
canvas.addEventListener("blur", () => {
  if (point.down) press();
  cursor.hidden = true;
});

function move([right, down], step) {
  const next = { x: clamp(point.x + right * step, canvas.width), y: clamp(point.y + down * step, canvas.height) };
  if (point.down) stroke(point, next);
  Object.assign(point, next);
  showCursor();
}

function press() {
  point.down = !point.down;
  if (point.down) stroke(point, point);
  else listeners.lift();
  showCursor();
}

function clamp(value, limit) {
  return Math.min(limit, Math.max(0, value));
}

// Shown for keyboard use only: a mouse does not make the focus visible.
function showCursor() {
  cursor.hidden = isPicture() || !canvas.matches(":focus-visible");
  cursor.classList.toggle("down", point.down);
  cursor.style.left = `${(100 * point.x) / canvas.width}%`;
  cursor.style.top = `${(100 * point.y) / canvas.height}%`;
}
