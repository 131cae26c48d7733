// The API key, if the service requires one: entered once, kept until the tab is closed.

const form = document.getElementById("key-form");
const field = document.getElementById("key");

let entered = () => {};

export function onKey(listener) {
  entered = listener;
}

// fetch with the key; shows the form where the service answers 401.
export async function fetchWithKey(address, options = {}) {
  const key = load();
  const headers = key ? { ...options.headers, "X-API-Key": key } : options.headers;
  const response = await fetch(address, { ...options, headers });
  if (response.status === 401) form.hidden = false;
  return response;
}

function load() {
  try {
    return sessionStorage.getItem("key");
  } catch {
    // Without session storage the key is lost at a reload.
    return field.value;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    sessionStorage.setItem("key", field.value.trim());
  } catch {
    // See `load`.
  }
  form.hidden = true;
  entered();
});
