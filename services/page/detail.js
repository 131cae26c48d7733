// One digit in detail: ten bars, and the image that the model saw.

import { article, digitsOf, percent, toImageData } from "/page/reading.js";

const element = (id) => document.getElementById(id);

export function show(reading, index) {
  const digits = digitsOf(reading);
  const digit = digits[index];
  element("which").textContent = digits.length === 1 ? "" : describe(digit, index, digits.length);
  digit.probabilities.forEach((probability, value) => {
    bar(value, probability, value === digit.digit, digit.prediction_set.includes(value));
  });
  element("bars").classList.toggle("uncertain", digit.uncertain || !digit.is_digit);
  element("seen").getContext("2d").putImageData(toImageData(digit.image), 0, 0);
}

export function showNothing() {
  element("which").textContent = "";
  for (let digit = 0; digit < 10; digit += 1) bar(digit, 0, false, false);
  element("seen").getContext("2d").clearRect(0, 0, 28, 28);
}

function describe(digit, index, count) {
  const place = `Digit ${index + 1} of ${count}`;
  if (!digit.is_digit) return `${place}: that is no digit. It looks most like ${article(digit.digit)}.`;
  return `${place}: ${article(digit.digit)} (${percent(digit.probability)})${digit.uncertain ? "; I am not sure" : ""}.`;
}

function bar(digit, probability, isBest, isInSet) {
  const line = element("bars").children[digit];
  line.classList.toggle("best", isBest);
  line.classList.toggle("possible", isInSet);
  line.querySelector(".fill").style.height = `${100 * probability}%`;
  line.querySelector(".share").textContent = probability >= 0.0005 ? percent(probability).slice(0, -2) : "";
  line.setAttribute("aria-label", `${digit}: ${percent(probability)}${isInSet ? ", cannot be ruled out" : ""}`);
}

for (let digit = 0; digit < 10; digit += 1) {
  const line = document.createElement("li");
  line.innerHTML = `<span class="share"></span><span class="track"><span class="fill"></span></span><span class="name">${digit}</span>`;
  element("bars").append(line);
}
