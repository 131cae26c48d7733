// The page to label on: shows one image after the other and sends what a person says of it, by keyboard or by touch.

import * as key from "/page/key.js";
import { toImageData } from "/page/reading.js";

// The queues, in the order of their usefulness.
const QUEUES = {
  audit: ["Audit sample", "answers drawn at random; accuracy is measured on them"],
  uncertain: ["Uncertain", "answers of little confidence; the next model learns most from them"],
  disagreement: ["Disagreement", "the challenger would have answered something else"],
  quarantine: ["Quarantine", "somebody’s label contradicts a confident answer"],
  suspected: ["Suspected wrong labels", "training images whose label is probably wrong"],
};
const NO_DIGIT = "no digit";
// The service counts the images of a queue up to here.
const MAX_COUNTED = 500;
// Images of a request; more are fetched when fewer than REFILL_BELOW are left.
const BATCH_SIZE = 50;
const REFILL_BELOW = 15;
// So many of the skipped images are left out of what is fetched: with those that are shown, an address of less than 8 kB, which proxies accept.
const MAX_SKIPPED = 150;
// Labels that are listed below the image.
const HISTORY_LENGTH = 12;
const RETRY_MS = 3000;
const POLL_MS = 10_000;
const NO_ANSWER = "The service does not answer; this is tried again.";

const element = (id) => document.getElementById(id);
const state = {
  images: [], // those to come; the first is shown
  decisions: [], // {image, label, number} of this session; label is null for a skipped one
  skipped: [], // ids
  pending: [], // {decision, change}: labels (change 1) and withdrawals (change -1) under way
  queue: null, // the chosen one, or null for all
  statistics: null, // the last response of the service without its images
  selection: 0, // number of the choice of a queue, so that a response to an earlier one is not used
  fetching: false,
  hasMore: true, // whether the service may have more images
  timer: 0, // of the next attempt
};
// Requests about labels, one after the other: a label and its withdrawal must not change places.
let sending = Promise.resolve();

async function fetchImages() {
  if (state.fetching) return;
  state.fetching = true;
  const selection = state.selection;
  // In turn with the labels: its figures count those that were sent before it.
  const asked = sending.then(() => ask(address()));
  // Labels must be sent whatever became of it.
  sending = asked.catch(() => null);
  let response;
  try {
    response = await asked;
  } finally {
    state.fetching = false;
  }
  if (selection !== state.selection) return void fetchImages();
  if (response === null) return;
  const { images, ...statistics } = response;
  state.statistics = statistics;
  for (const { decision, change } of state.pending) adjustStatistics(decision, change);
  const known = new Set([...excluded(), ...state.decisions.filter((one) => one.label !== null).map((one) => one.image.id)]);
  state.images.push(...images.filter((image) => !known.has(image.id)));
  state.hasMore = images.length === BATCH_SIZE;
  show();
  if (state.images.length === 0) fetchLater(POLL_MS);
}

function fetchLater(milliseconds) {
  clearTimeout(state.timer);
  state.timer = setTimeout(() => (document.hidden ? fetchLater(POLL_MS) : fetchImages()), milliseconds);
}

function address() {
  // Not by URLSearchParams, which would make three characters of each comma.
  const queue = state.queue ? `&queue=${state.queue}` : "";
  return `/label_queue?limit=${BATCH_SIZE}${queue}&exclude=${excluded().join(",")}`;
}

function excluded() {
  return [...state.images.map((image) => image.id), ...state.pending.map((one) => one.decision.image.id), ...state.skipped.slice(-MAX_SKIPPED)];
}

// The answer to a GET; null where it is tried again later, or a key is asked for.
async function ask(address) {
  let response, answer;
  try {
    response = await key.fetchWithKey(address);
    answer = await response.json();
  } catch {
    say(NO_ANSWER);
    fetchLater(RETRY_MS);
    return null;
  }
  if (response.ok) return answer;
  say(sentence(problemOf(answer)));
  // Another key may have the role.
  if (response.status === 403) element("key-form").hidden = false;
  else if (response.status !== 401) fetchLater(RETRY_MS);
  return null;
}

function show() {
  const image = state.images[0];
  const paper = element("image").getContext("2d");
  element("image").hidden = !image;
  element("empty").hidden = Boolean(image);
  if (image) paper.putImageData(toImageData(image.image, (ink) => 255 - ink), 0, 0);
  element("reason").textContent = image ? `${QUEUES[image.queue][0]}, ${countText(image.queue)} left` : "";
  element("empty").textContent = emptyText();
  for (const button of [...element("digits").children, element("none"), element("skip")]) button.disabled = !image;
  element("undo").disabled = state.decisions.length === 0;
  showProgress();
  showQueues();
  showHistory();
}

// The number of images that wait in a queue, as text.
function countText(queue) {
  const waiting = state.statistics.waiting[queue];
  return waiting >= MAX_COUNTED ? `${MAX_COUNTED} or more` : String(waiting);
}

function emptyText() {
  if (state.statistics === null || state.fetching) return "";
  const skipped = state.skipped.length ? ` You skipped ${state.skipped.length}; reload the page to see them again.` : "";
  return `Nothing waits ${state.queue ? "in this queue" : "for a label"}. New answers appear here by themselves.${skipped}`;
}

function showProgress() {
  const { statistics } = state;
  if (statistics === null) return;
  const labelled = state.decisions.filter((one) => one.label !== null).length;
  element("tally").textContent = labelled ? `${labelled} by you` : "";
  const missing = statistics.min_audit_labels - statistics.audit_labels;
  const version = statistics.model_version === null ? "the version" : `version ${statistics.model_version}`;
  element("audit-text").textContent =
    missing > 0
      ? `${statistics.audit_labels} of ${statistics.min_audit_labels} audit labels, until the accuracy of ${version} is reported`
      : `${statistics.audit_labels} audit labels: the accuracy of ${version} is reported, and more make it more exact`;
  fill("audit", statistics.audit_labels, statistics.min_audit_labels);
  element("retrain-text").textContent =
    statistics.new_labels < statistics.retrain_labels
      ? `${statistics.new_labels} of ${statistics.retrain_labels} new labels, until a retraining starts by itself`
      : `${statistics.new_labels} new labels: a retraining starts with the next monitoring`;
  fill("retrain", statistics.new_labels, statistics.retrain_labels);
  element("standing").textContent = statistics.is_auditor
    ? "You label as an auditor: your labels are trusted, and those of the audit sample measure accuracy."
    : "Your key is not the one named audit: models learn from your labels, but accuracy is not measured with them.";
}

function fill(name, value, max) {
  const bar = element(`${name}-progress`);
  bar.max = max;
  bar.value = Math.min(value, max);
}

function showQueues() {
  if (state.statistics === null) return;
  const total = Object.values(state.statistics.waiting).reduce((sum, count) => sum + count, 0);
  for (const line of element("queues").children) {
    const name = line.dataset.queue;
    line.querySelector(".count").textContent = name === "all" ? total : countText(name);
    line.hidden = !state.statistics.is_auditor && ["audit", "quarantine", "suspected"].includes(name);
  }
}

function showHistory() {
  const shown = state.decisions.filter((one) => one.label !== null).slice(-HISTORY_LENGTH).reverse();
  element("session").hidden = shown.length === 0;
  element("history").replaceChildren(
    ...shown.map(({ image, label }) => {
      const line = document.createElement("li");
      const picture = document.createElement("canvas");
      [picture.width, picture.height] = [28, 28];
      picture.getContext("2d").putImageData(toImageData(image.image, (ink) => 255 - ink), 0, 0);
      line.append(picture, label);
      return line;
    }),
  );
}

function say(text) {
  element("said").textContent = text;
}

// What is wrong, of an answer that another program than the service may have given, such as a proxy.
function problemOf(answer) {
  return answer?.error ? String(answer.error) : "the service is out of order; this is tried again";
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

// Labels the image that is shown, and goes on without waiting for the service.
function label(answer) {
  const image = state.images.shift();
  if (!image) return;
  // number: of the label, by which it is taken back; null where another auditor had said the same, so that nothing was stored
  const decision = { image, label: answer, number: null };
  state.decisions.push(decision);
  say(`Labelled: ${answer}.`);
  const meaning = answer === NO_DIGIT ? { is_digit: false } : { digit: Number(answer) };
  const stored = (response) => {
    decision.number = response.label_number;
    if (decision.number === null && image.queue !== "suspected") refetch(`Labelled: ${answer}, as somebody else did meanwhile.`);
  };
  const undone = (isGone) => {
    const place = state.decisions.indexOf(decision);
    // It may have been taken back meanwhile.
    if (place < 0) return;
    state.decisions.splice(place, 1);
    // What the platform no longer has is not asked about again.
    if (isGone) goOn();
    else state.images.unshift(image);
  };
  send(decision, 1, "/feedback", () => meaning, stored, undone);
  goOn();
}

// Somebody else labels at the same time, and may have labelled what was fetched: only the image that is shown stays.
function refetch(message) {
  say(message);
  state.images.splice(1);
  state.hasMore = true;
  fetchImages();
}

function skip() {
  const image = state.images.shift();
  if (!image) return;
  state.decisions.push({ image, label: null });
  state.skipped.push(image.id);
  say("Skipped.");
  goOn();
}

function goOn() {
  // Before the page is shown, which says that nothing waits only once this is known.
  if (state.images.length === 0 || (state.hasMore && state.images.length < REFILL_BELOW)) fetchImages();
  show();
}

// Takes the last answer back, and shows its image again.
function undo() {
  const last = state.decisions.pop();
  if (!last) return;
  const { image } = last;
  state.images.unshift(image);
  if (last.label === null) state.skipped = state.skipped.filter((id) => id !== image.id);
  else {
    const undone = () => {
      // The image may have another label meanwhile.
      if (!state.images.includes(image)) return;
      state.images = state.images.filter((one) => one !== image);
      state.decisions.push(last);
    };
    send(last, -1, "/withdraw", () => withdrawal(last), () => {}, undone);
  }
  say("Taken back.");
  show();
}

// The fields of a request that takes a label back; null where there is nothing of this page's to take back.
function withdrawal({ image, number }) {
  if (image.queue === "suspected") return {};
  return number === null ? null : { label_number: number };
}

// The figures that the service would give after a label; the next answer brings its own.
function adjustStatistics({ image, label }, change) {
  const { statistics } = state;
  statistics.waiting[image.queue] = Math.max(0, statistics.waiting[image.queue] - change);
  // No digit is no figure of accuracy, and teaches nothing.
  if (image.queue === "suspected" || label === NO_DIGIT) return;
  statistics.new_labels = Math.max(0, statistics.new_labels + change);
  if (image.queue === "audit") statistics.audit_labels = Math.max(0, statistics.audit_labels + change);
}

// Sends a decision, or its withdrawal, after all that were made before; `fields` gives those of its turn, or null to send nothing.
// Where it is refused, says why and calls `undone`, which learns whether the platform no longer has the image.
function send(decision, change, address, fields, stored, undone) {
  const entry = { decision, change };
  state.pending.push(entry);
  adjustStatistics(decision, change);
  sending = sending.then(async () => {
    const ownFields = fields();
    const body = JSON.stringify({ id: decision.image.id, source: "audit", ...ownFields });
    const { answer, problem, isGone } = ownFields === null ? { answer: null, problem: null } : await post(address, body);
    state.pending.splice(state.pending.indexOf(entry), 1);
    if (problem === null) {
      if (answer !== null) stored(answer);
      return;
    }
    adjustStatistics(decision, -change);
    undone(isGone);
    show();
    say(problem);
  });
}

// The service's answer, the sentence of what is wrong or null where the service took it, and whether it no longer has the image.
async function post(address, body) {
  const headers = { "Content-Type": "application/json" };
  try {
    // keepalive: what was said last is stored although the page is left.
    const response = await key.fetchWithKey(address, { method: "POST", headers, body, keepalive: true });
    const answer = await response.json();
    if (response.ok) return { answer, problem: null };
    const problem = `Not stored: ${answer?.error ?? `the service answers ${response.status}`}.`;
    return { answer: null, problem, isGone: response.status === 404 };
  } catch {
    return { answer: null, problem: "Not stored: the service does not answer. Label it again in a moment." };
  }
}

function choose(name) {
  state.queue = name === "all" ? null : name;
  state.images = [];
  state.selection += 1;
  show();
  fetchImages();
}

function button(text, listener) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  onPress(made, listener);
  return made;
}

// After a click, Space must not press the button again for the next image.
function onPress(pressed, listener) {
  pressed.addEventListener("click", (event) => {
    if (event.detail > 0) pressed.blur();
    listener();
  });
}

function queueLine(name, title, explanation) {
  const line = document.createElement("label");
  line.dataset.queue = name;
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "queue", value: name, checked: name === "all" });
  input.addEventListener("change", () => choose(name));
  const parts = [["", title], ["count", ""], ["quiet", explanation]].map(([className, text]) => {
    const part = document.createElement("span");
    Object.assign(part, { className, textContent: text });
    return part;
  });
  line.append(input, ...parts);
  return line;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.matches("input[type=password]")) return;
  if (!element("shortcuts").checked) return;
  // There Space presses what has the focus; a queue is chosen already.
  const isControl = event.target.matches("button, summary, a, input:not([type=radio]:checked)");
  const pressed = event.key.toLowerCase();
  if (/^[0-9]$/.test(pressed)) label(pressed);
  else if (pressed === "n") label(NO_DIGIT);
  else if (pressed === "backspace" || pressed === "u") undo();
  else if (pressed === "s" || (pressed === " " && !isControl)) skip();
  else return;
  // Otherwise Space scrolls.
  event.preventDefault();
});

for (let digit = 0; digit < 10; digit += 1) element("digits").append(button(String(digit), () => label(String(digit))));
onPress(element("none"), () => label(NO_DIGIT));
onPress(element("undo"), undo);
onPress(element("skip"), skip);
element("queues").append(
  queueLine("all", "All", "the most informative first"),
  ...Object.entries(QUEUES).map(([name, texts]) => queueLine(name, ...texts)),
);
key.onKey(() => {
  say("");
  choose(state.queue ?? "all");
});
show();
fetchImages();
