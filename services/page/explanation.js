// The map of the pixels that spoke for an answer, computed by the service when it is asked for.

import { fetchWithKey } from "/page/key.js";
import { article } from "/page/reading.js";

const element = (id) => document.getElementById(id);
// Below this fall of the probability, a map is shown no brighter: it would be noise.
const MIN_SCALE = 0.02;
// Red, green and blue of what spoke for the answer, and against it.
const FOR = [255, 176, 32];
const AGAINST = [80, 150, 255];
// The image that can be explained.
let image = null;

// Offers to explain an image; null: none.
export function offer(offered) {
  image = offered;
  element("explanation").hidden = true;
  element("explain").hidden = false;
  element("explain").disabled = image === null;
}

element("explain").addEventListener("click", async () => {
  const asked = image;
  element("explain").disabled = true;
  let answer, response;
  try {
    const body = JSON.stringify({ image: asked });
    response = await fetchWithKey("/explain", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    answer = await response.json();
  } catch {
    answer = { error: "the service does not answer; try again in a moment" };
  }
  if (asked !== image) return;
  element("explain").disabled = false;
  element("explain").hidden = Boolean(response?.ok);
  element("explanation").hidden = false;
  const scale = response?.ok ? draw(asked, answer.falls) : 0;
  element("map-text").textContent = response?.ok ? describe(answer, scale) : answer.error;
});

// Draws ink in grey and the map over it; returns the largest fall.
function draw(ink, falls) {
  const largest = Math.max(...falls.flat());
  const scale = Math.max(MIN_SCALE, ...falls.flat().map(Math.abs));
  const data = new ImageData(28, 28);
  falls.flat().forEach((fall, index) => {
    const grey = 0.45 * ink.flat()[index];
    const share = Math.min(1, Math.abs(fall) / scale);
    const colour = (fall < 0 ? AGAINST : FOR).map((value) => (1 - share) * grey + share * value);
    data.data.set([...colour, 255], 4 * index);
  });
  element("map").getContext("2d").putImageData(data, 0, 0);
  return largest;
}

function describe({ digit }, largest) {
  if (largest < MIN_SCALE) return `no single spot decides for ${article(digit)}`;
  return `bright spots spoke for ${article(digit)}: covered, it loses up to ${Math.round(100 * largest)} points`;
}
