// A reading: the answer of /read, with the width and height of the picture that its boxes refer to, and the labels given to its digits.

// The answer of /classify_file as a reading of one digit without a place.
export function single(answer) {
  const { digit, probability, uncertain, model_version } = answer;
  const line = { text: String(digit), confidence: probability, uncertain, digits: [answer] };
  return { text: line.text, lines: [line], left_out: 0, model_version };
}

export function digitsOf(reading) {
  return reading.lines.flatMap((line) => line.digits);
}

// Of a line, its digits and separators in order: {text, digit}, without `digit` for a separator.
export function piecesOf(line) {
  const digits = line.digits.values();
  return [...line.text].map((text) => {
    if (!/[0-9]/.test(text)) return { text };
    const digit = digits.next().value;
    return { text: String(digit.label ?? digit.digit), digit };
  });
}

// All lines, with the digits as they were corrected.
export function textOf(reading) {
  return reading.lines.map((line) => piecesOf(line).map((piece) => piece.text).join("")).join("\n");
}

// Whether somebody should look at a digit: the model is not sure of it, and nobody has said what it is.
export function isDoubtful(digit) {
  return !("label" in digit) && (digit.uncertain || !digit.is_digit);
}

export function article(digit) {
  return `${digit === 8 ? "an" : "a"} ${digit}`;
}

export function percent(probability) {
  return `${Math.min(99.9, 100 * probability).toFixed(1)} %`;
}

// The sentences on a reading: what is said large, and a note.
export function describe(reading, coverage) {
  const digits = digitsOf(reading);
  const [message, note] = digits.length === 1 ? describeDigit(digits[0], coverage) : describeNumber(reading, digits);
  return { message, note: [note, describeLeftOut(reading.left_out)].filter(Boolean).join(" ") };
}

function describeDigit(digit, coverage) {
  if (!digit.is_digit) return ["That is no digit.", `It looks most like ${article(digit.digit)}.`];
  return [describeCertainty(digit), describeSet(digit.prediction_set, coverage)];
}

function describeCertainty(answer) {
  const [first, second] = answer.probabilities.map((p, digit) => [p, digit]).sort((a, b) => b[0] - a[0]);
  if (!answer.uncertain) return `That is ${article(answer.digit)} (${percent(answer.probability)}).`;
  if (first[0] < 0.5) return `I cannot tell. At best ${article(first[1])} (${percent(first[0])}), perhaps ${article(second[1])}.`;
  return `I am not sure. It may be ${article(first[1])} (${percent(first[0])}) or ${article(second[1])} (${percent(second[0])}).`;
}

function describeSet(digits, coverage) {
  if (digits.length === 10) return "No digit is ruled out.";
  const left = digits.length === 1 ? `${digits[0]}` : `${digits.slice(0, -1).join(", ")} and ${digits.at(-1)}`;
  const promise = coverage === null ? "." : `; that is right for ${percent(coverage)} of the images of each digit, if they are like those it was trained with.`;
  return `All but ${left} are ruled out${promise}`;
}

function describeNumber(reading, digits) {
  const doubtful = digits.filter(isDoubtful).length;
  const isSure = doubtful === 0 && !reading.lines.some((line) => line.uncertain);
  const size = `${reading.lines.length > 1 ? `${reading.lines.length} lines, ` : ""}${digits.length} digits`;
  const confidence = reading.lines.length > 1 ? "" : ` Confidence ${percent(reading.lines[0].confidence)}.`;
  const message = isSure ? `${size}.${confidence}` : `${size}; I am not sure.${confidence}`;
  if (doubtful === 0) return [message, "Choose a digit in the picture to look at it or to correct it."];
  return [message, `Check the ${doubtful === 1 ? "digit that is" : `${doubtful} digits that are`} marked with “?”.`];
}

function describeLeftOut(count) {
  if (!count) return "";
  return count === 1 ? "One piece of ink was left out: it is no digit." : `${count} pieces of ink were left out: they are no digits.`;
}

// 28 x 28 pixels as a browser's image.
export function toImageData(image, shade = (ink) => ink) {
  const data = new ImageData(28, 28);
  image.flat().forEach((ink, index) => data.data.set([shade(ink), shade(ink), shade(ink), 255], 4 * index));
  return data;
}
