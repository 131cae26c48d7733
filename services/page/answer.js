// The answer: the digit, a sentence on its certainty, the prediction set, ten bars, and the image that the model saw.

import { toImageData } from "/page/canvas.js";

const element = (id) => document.getElementById(id);
// Coverage of the prediction sets, as stated by the model version.
let coverage = null;

export function setCoverage(conformal) {
  coverage = conformal?.coverage ?? null;
}

export function show(answer) {
  element("digit").textContent = answer.digit;
  element("digit").classList.toggle("uncertain", answer.uncertain);
  element("message").textContent = describe(answer);
  element("set").textContent = describeSet(answer.prediction_set);
  answer.probabilities.forEach((probability, digit) => {
    bar(digit, probability, digit === answer.digit, answer.prediction_set.includes(digit));
  });
  showSeen(answer.image);
}

export function showNothing(sentence) {
  element("digit").textContent = "?";
  element("digit").classList.add("uncertain");
  element("message").textContent = sentence;
  element("set").textContent = "";
  for (let digit = 0; digit < 10; digit += 1) bar(digit, 0, false, false);
  showSeen(null);
}

function describe(answer) {
  const [first, second] = answer.probabilities.map((p, digit) => [p, digit]).sort((a, b) => b[0] - a[0]);
  if (!answer.uncertain) return `That is ${article(answer.digit)} (${percent(answer.probability)}).`;
  if (first[0] < 0.5) return `I cannot tell. At best ${article(first[1])} (${percent(first[0])}), perhaps ${article(second[1])}.`;
  return `I am not sure. It may be ${article(first[1])} (${percent(first[0])}) or ${article(second[1])} (${percent(second[0])}).`;
}

export function article(digit) {
  return `${digit === 8 ? "an" : "a"} ${digit}`;
}

function describeSet(digits) {
  if (digits.length === 10) return "No digit is ruled out.";
  const left = digits.length === 1 ? `${digits[0]}` : `${digits.slice(0, -1).join(", ")} and ${digits.at(-1)}`;
  const promise = coverage === null ? "." : `; that is right for ${percent(coverage)} of the images of each digit, if they are like those it was trained with.`;
  return `All but ${left} are ruled out${promise}`;
}

function percent(probability) {
  return `${Math.min(99.9, 100 * probability).toFixed(1)} %`;
}

function bar(digit, probability, isBest, isInSet) {
  const line = element("bars").children[digit];
  line.classList.toggle("best", isBest);
  line.classList.toggle("possible", isInSet);
  line.querySelector(".fill").style.height = `${100 * probability}%`;
  line.querySelector(".share").textContent = probability >= 0.0005 ? percent(probability).slice(0, -2) : "";
  line.setAttribute("aria-label", `${digit}: ${percent(probability)}${isInSet ? ", cannot be ruled out" : ""}`);
}

function showSeen(image) {
  const seen = element("seen").getContext("2d");
  if (image) seen.putImageData(toImageData(image), 0, 0);
  else seen.clearRect(0, 0, 28, 28);
}

for (let digit = 0; digit < 10; digit += 1) {
  const line = document.createElement("li");
  line.innerHTML = `<span class="share"></span><span class="track"><span class="fill"></span></span><span class="name">${digit}</span>`;
  element("bars").append(line);
}
