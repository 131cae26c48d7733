// The ten buttons that say which digit it was.

import { article } from "/page/reading.js";

const element = (id) => document.getElementById(id);

// Calls listener(digit) when one is pressed.
export function onPress(listener) {
  buttons().forEach((button, digit) => button.addEventListener("click", () => listener(digit)));
}

export function offer(answer) {
  element("thanks").textContent = "label" in answer ? `You said it was ${article(answer.label)}.` : "";
  buttons().forEach((button) => (button.disabled = false));
  press(answer.label);
}

export function disable() {
  element("thanks").textContent = "";
  buttons().forEach((button) => (button.disabled = true));
  press(null);
}

// Shows which digit was given, or the error.
export function report(digit, error) {
  press(error === null ? digit : null);
  element("thanks").textContent = error ?? `Noted: it was ${article(digit)}. Thank you.`;
}

function press(digit) {
  buttons().forEach((button, other) => button.setAttribute("aria-pressed", String(other === digit)));
}

function buttons() {
  return [...element("digits").children];
}

for (let digit = 0; digit < 10; digit += 1) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = digit;
  element("digits").append(button);
}
