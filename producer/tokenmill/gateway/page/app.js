// The page, put together: what the feed tells goes to the panels and to the picture of one worker's batch.

import { Batch, doing, isRunning, nameOf } from "./batch.js";
import { $, keyed, make, text } from "./dom.js";
import { follow, headers, rememberKey } from "./feed.js";
import { count, duration, plural, rate } from "./format.js";
import { showLook } from "./panels.js";

const TABLE_MS = 1000; // between two looks of the table, if it is open: a person reads it

const batch = new Batch($("picture"), $("tip"), {
  prefill: $("swatch-prefill"), decode: $("swatch-decode"), finish: $("swatch-finish"), cut: $("swatch-cut"),
});
let about = { can_redrive: false };
let look = null;
let pictures = {};
let chosen = null; // picture_name of the worker whose batch is shown
let tableDueMs = 0;

const on = {
  about(told) {
    about = told;
    text($("queue"), told.queue === "default" ? "" : `queue ${told.queue}`);
  },
  look(told) {
    look = told;
    if (look.first_token_p50_ms === undefined) return;
    showLook(look, about);
    showTabs();
    showBatch();
  },
  pictures(told) {
    pictures = told;
    showBatch();
  },
  trouble(told) {
    showConnection("lost", told.message);
  },
};

// Whose batch

function showTabs() {
  const workers = look.workers.filter((worker) => worker.picture_name !== null);
  if (!workers.some((worker) => worker.picture_name === chosen)) choose(workers[0]?.picture_name ?? null);
  const tabs = workers.length > 1 ? workers : [];
  keyed($("workers-tabs"), tabs, (worker) => worker.picture_name, (worker) => {
    const button = make("button");
    button.type = "button";
    button.title = worker.name;
    button.addEventListener("click", () => { choose(worker.picture_name); showTabs(); });
    return button;
  }, (button, worker) => {
    text(button, `${1 + workers.indexOf(worker)}`);
    button.setAttribute("aria-label", `Batch of worker ${worker.name}`);
    button.setAttribute("aria-pressed", String(worker.picture_name === chosen));
  });
}

function choose(name) {
  chosen = name;
  batch.show(pictures[name] ?? null, true);
}

function showBatch() {
  const picture = pictures[chosen] ?? null;
  batch.show(picture);
  const running = picture === null ? [] : picture.bars.filter((bar) => isRunning(bar, picture.step));
  $("picture-empty").hidden = picture !== null && picture.bars.length > 0;
  text($("picture-empty"), chosen === null ? "No worker to look at." : "Nothing has run since somebody looks.");
  const worker = look?.workers.find((one) => one.picture_name === chosen);
  const steps = worker ? `, ${rate(worker.rates.steps_per_s)} steps a second` : "";
  text($("batch-note"), picture === null ? "\u00a0" : `${plural(running.length, "row")} of ${count(picture.num_rows)}${steps}`);
  showAxis(picture);
  if ($("rows").open && performance.now() >= tableDueMs) showTable(picture, running);
}

function showAxis(picture) {
  const shown = picture === null || !batch.stepPx ? [] : picture.steps.slice(-Math.floor($("picture").clientWidth / batch.stepPx));
  const seconds = shown.reduce((total, [milliseconds]) => total + milliseconds, 0) / 1000;
  text($("axis-left"), seconds ? `${seconds < 10 ? seconds.toFixed(1) + " s" : duration(seconds)} ago` : "\u00a0");
}

function showTable(picture, running) {
  tableDueMs = performance.now() + TABLE_MS;
  const sorted = running.toSorted((one, other) => one.row - other.row);
  keyed($("rows-body"), sorted, (bar) => `${bar.row} ${nameOf(bar)}`, () => {
    const line = make("tr");
    line.append(...["number", "id", "", "number", "number", "number"].map((name) => make("td", name)));
    return line;
  }, (line, bar) => {
    const drawn = Math.max(0, bar.num_done - bar.num_prompt);
    const told = [bar.row, nameOf(bar), doing(bar, picture.step), bar.num_prompt, drawn, bar.limit - bar.num_prompt];
    told.forEach((value, place) => text(line.children[place], String(value)));
  });
}

$("rows").addEventListener("toggle", () => { tableDueMs = 0; showBatch(); });

// The connection, and its key

function showConnection(state, told) {
  $("connection").dataset.state = state;
  text($("connection-text"), told);
}

function onState(state) {
  showConnection(state, state === "live" ? "live" : "connection lost, trying again");
}

function askKey(isWrong) {
  text($("key-error"), isWrong ? "The gateway does not accept this key." : "");
  const dialog = $("ask-key");
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      rememberKey($("key").value.trim());
      resolve();
    }, { once: true });
  });
}

// Dead letters

async function redrive(names, button) {
  button.disabled = true;
  try {
    const response = await fetch("/fleet/dead-letters/redrive", {
      method: "POST",
      headers: headers({ "Content-Type": "application/json", "X-Tokenmill-Page": "1" }),
      body: JSON.stringify({ names }),
    });
    const told = await response.json();
    text($("redrive-told"), response.ok ? outcome(told.letters) : told.error.message);
  } catch (error) {
    text($("redrive-told"), `The gateway did not answer: ${error.message}`);
  } finally {
    button.disabled = false;
  }
}

function outcome(letters) {
  const again = letters.filter((letter) => letter.new_id !== null);
  const kept = letters.filter((letter) => letter.new_id === null);
  const parts = again.length === 1 ? [`${again[0].id} is asked again as ${again[0].new_id}.`] : again.length ? [`${again.length} are asked again.`] : [];
  if (kept.length) parts.push(`${plural(kept.length, "letter")} kept: ${kept[0].kept}.`);
  return parts.join(" ");
}

$("letters").addEventListener("click", (event) => {
  const button = event.target.closest("button.redrive");
  if (button) redrive([button.dataset.letter], button);
});
$("redrive-all").addEventListener("click", (event) => {
  redrive(look.dead_letters.map((letter) => letter.name), event.currentTarget);
});

follow(on, onState, askKey);
