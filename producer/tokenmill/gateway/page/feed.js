// Reads /fleet/events for as long as the page is open, and comes back when the connection is lost. Knows no panel.
// fetch and not EventSource: that one cannot send a key.

const KEY = "tokenmill-key";
const FIRST_WAIT_MS = 500;
const MOST_WAIT_MS = 8000;
const SILENCE_MS = 40_000; // the gateway says something at least every 15 s

let key = null;
try { key = sessionStorage.getItem(KEY); } catch { /* a browser that keeps nothing for us */ }

export function rememberKey(value) {
  key = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* then for this page alone */ }
}

export function headers(more = {}) {
  return key === null ? more : { ...more, Authorization: `Bearer ${key}` };
}

/** `on`: {event: told => ...}; `onState(state)`: live, lost; `askKey(isWrong)`: a promise, kept when there is one. */
export async function follow(on, onState, askKey) {
  let waitMs = FIRST_WAIT_MS;
  for (;;) {
    try {
      const response = await fetch("/fleet/events", { headers: headers(), cache: "no-store" });
      if (response.status === 401 || response.status === 403) {
        await askKey(key !== null);
        continue;
      }
      if (!response.ok) throw new Error(`status ${response.status}`);
      onState("live");
      waitMs = FIRST_WAIT_MS;
      await read(response.body, on);
    } catch (error) {
      console.info("the feed ended:", error.message);
    }
    onState("lost");
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    waitMs = Math.min(2 * waitMs, MOST_WAIT_MS);
  }
}

async function read(body, on) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await withPatience(reader);
    if (done) return;
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const event of events) dispatch(event, on);
  }
}

function withPatience(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => { reader.cancel(); reject(new Error("silence")); }, SILENCE_MS);
  });
  return Promise.race([reader.read(), silence]).finally(() => clearTimeout(timer));
}

function dispatch(event, on) {
  let name = "message", data = "";
  for (const line of event.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data && on[name]) on[name](JSON.parse(data));
}
