// The canvas: drawing with mouse, finger, pen and keyboard, and showing a picture. It does not call the service.

const canvas = document.getElementById("canvas");
const paper = canvas.getContext("2d", { willReadFrequently: true });
const cursor = document.getElementById("cursor");
const size = document.getElementById("size");
// The pen that the arrow keys move.
const point = { x: canvas.width / 2, y: canvas.height / 2, down: false };
// The last position of the pointer while it draws, otherwise null.
let last = null;

let listeners = { stroke: () => {}, lift: () => {} };

// Calls stroke() for each segment drawn and lift() at the end of a line.
export function listen(wanted) {
  listeners = wanted;
}

export function isDrawing() {
  return last !== null || point.down;
}

export function clear() {
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  canvas.classList.remove("picture");
  point.down = false;
  showCursor();
}

export function toPng() {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export function choose(tool) {
  document.querySelector(`input[name=tool][value=${tool}]`).checked = true;
}

// Shows a picture of any size, scaled to the canvas; throws what the browser cannot decode.
export async function showPicture(picture) {
  const bitmap = await createImageBitmap(picture);
  const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  paper.drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  // Dark mode does not invert the colours of a picture.
  canvas.classList.add("picture");
}

// Shows a 28 x 28 image in dark ink on white.
export async function showImage(image) {
  const bitmap = await createImageBitmap(toImageData(image, (ink) => 255 - ink));
  paper.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

export function toImageData(image, shade = (ink) => ink) {
  const data = new ImageData(28, 28);
  image.flat().forEach((ink, index) => data.data.set([shade(ink), shade(ink), shade(ink), 255], 4 * index));
  return data;
}

function stroke(from, to) {
  const erases = document.querySelector("input[name=tool]:checked").value === "eraser";
  paper.strokeStyle = erases ? "#fff" : "#111";
  paper.lineWidth = Number(size.value) * (erases ? 1.5 : 1);
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

canvas.addEventListener("pointerdown", (event) => {
  // A second finger does not draw.
  if (event.button !== 0 || !event.isPrimary) return;
  canvas.setPointerCapture(event.pointerId);
  last = position(event);
  stroke(last, last);
});

canvas.addEventListener("pointermove", (event) => {
  if (last === null || !event.isPrimary) return;
  const points = event.getCoalescedEvents?.() ?? [];
  for (const one of points.length ? points : [event]) {
    const next = position(one);
    stroke(last, next);
    last = next;
  }
});

function lift(event) {
  if (last === null || !event.isPrimary) return;
  last = null;
  listeners.lift();
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

canvas.addEventListener("keydown", (event) => {
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
  const next = { x: clamp(point.x + right * step), y: clamp(point.y + down * step) };
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

function clamp(value) {
  return Math.min(canvas.width, Math.max(0, value));
}

// Shown for keyboard use only: a mouse does not make the focus visible.
function showCursor() {
  cursor.hidden = !canvas.matches(":focus-visible");
  cursor.classList.toggle("down", point.down);
  cursor.style.left = `${(100 * point.x) / canvas.width}%`;
  cursor.style.top = `${(100 * point.y) / canvas.height}%`;
}
