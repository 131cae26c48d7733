// The boxes over the picture, one for each digit that was read: chosen by a tap, or by Tab and the arrow keys.

import { digitsOf, isDoubtful } from "/page/reading.js";

const group = document.getElementById("boxes");
// CSS pixels within which a tap finds a small box.
const MIN_TARGET = 44;
// Of the longer side of a digit.
const EDGE = 0.03;
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

let choose = () => {};

// Calls listener(index) when a digit is chosen.
export function onChoose(listener) {
  choose = listener;
}

// The boxes of a reading whose places in the picture are known, otherwise none.
export function show(reading) {
  const digits = reading?.width ? digitsOf(reading) : [];
  group.replaceChildren(...digits.map((digit, index) => box(digit, index, digits.length, reading)));
  group.hidden = digits.length === 0;
  group.classList.remove("stale");
}

// The picture changes, and the boxes are those of before.
export function fade() {
  group.classList.add("stale");
}

export function mark(chosen) {
  [...group.children].forEach((button, index) => {
    button.setAttribute("aria-checked", String(index === chosen));
    button.tabIndex = index === chosen ? 0 : -1;
  });
}

export function hasFocus() {
  return group.contains(document.activeElement);
}

export function focus(index) {
  group.children[index].focus();
}

function box(digit, index, count, { width, height }) {
  const button = document.createElement("button");
  const [left, top, wide, high] = digit.box;
  // The edges of broad strokes lie outside of the box.
  const edge = EDGE * Math.max(wide, high);
  const shares = {
    "--left": (left - edge) / width,
    "--top": (top - edge) / height,
    "--width": (wide + 2 * edge) / width,
    "--height": (high + 2 * edge) / height,
  };
  for (const [name, share] of Object.entries(shares)) button.style.setProperty(name, `${100 * share}%`);
  button.type = "button";
  button.setAttribute("role", "radio");
  button.setAttribute("aria-label", `digit ${index + 1} of ${count}: ${spoken(digit)}`);
  button.classList.toggle("doubtful", isDoubtful(digit));
  button.classList.toggle("corrected", "label" in digit);
  // At the lower edge of the picture there is no room for the tag.
  button.classList.toggle("low", (top + high) / height > 0.9);
  button.append(tag(digit));
  button.addEventListener("click", () => choose(index));
  return button;
}

function tag(digit) {
  const tag = document.createElement("span");
  tag.className = "tag";
  if ("label" in digit) tag.textContent = `${digit.label} ✓`;
  else tag.textContent = isDoubtful(digit) ? `${digit.digit}?` : digit.digit;
  return tag;
}

function spoken(digit) {
  if ("label" in digit) return `${digit.label}, as you said`;
  if (!digit.is_digit) return `no digit, most like ${digit.digit}`;
  return `${digit.digit}${digit.uncertain ? ", not sure" : ""}`;
}

// Chooses the digit at a place in shares of the picture's width and height; false if there is none.
export function tap(x, y) {
  const picture = group.getBoundingClientRect();
  const [left, top] = [picture.left + x * picture.width, picture.top + y * picture.height];
  const found = [...group.children]
    .map((button, index) => {
      const { x, y, width, height } = button.getBoundingClientRect();
      const [across, down] = [Math.abs(left - x - width / 2), Math.abs(top - y - height / 2)];
      const isHit = across <= Math.max(MIN_TARGET, width) / 2 && down <= Math.max(MIN_TARGET, height) / 2;
      return { index, distance: isHit ? Math.hypot(across, down) : Infinity };
    })
    .reduce((best, one) => (one.distance < best.distance ? one : best), { distance: Infinity });
  if (found.distance === Infinity) return false;
  choose(found.index);
  return true;
}

group.addEventListener("keydown", (event) => {
  if (!(event.key in STEPS) || event.ctrlKey || event.metaKey || event.altKey) return;
  const buttons = [...group.children];
  const index = (buttons.indexOf(document.activeElement) + STEPS[event.key] + buttons.length) % buttons.length;
  choose(index);
  group.children[index].focus();
  // Otherwise the page scrolls.
  event.preventDefault();
});
