// The API key that the service may ask for: entered once, kept until the tab is closed.

const form = document.getElementById("door");
const field = document.getElementById("key");

let entered = () => {};

export function onKey(listener) {
  entered = listener;
}

// fetch with the key; where the service wants another one, the page asks for it.
export async function ask(address, options = {}) {
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
    return field.value; // a forbidden storage costs only the key after a reload
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    sessionStorage.setItem("key", field.value.trim());
  } catch {
    // said above
  }
  form.hidden = true;
  entered();
});
