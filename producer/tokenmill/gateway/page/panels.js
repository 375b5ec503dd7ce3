// Everything of the page but the batch: figures, lanes, workers, runs, dead letters, errors. Knows no connection.

import { $, figure, keyed, make, text } from "./dom.js";
import { clock, count, duration, ms, percent, plural, rate, short } from "./format.js";

const HISTORY = 120; // looks, one a second
const SVG = "http://www.w3.org/2000/svg";
const LEASE_LOW_S = 4;

const history = [];

export function showLook(look, about) {
  showHeadline(look);
  showFigures(look);
  showLanes(look);
  showWorkers(look);
  showRuns(look);
  showLetters(look, about);
  showFailures(look);
}

function showHeadline(look) {
  const [state, sign, told] = headline(look);
  $("headline").dataset.state = state;
  text($("headline-sign"), sign);
  text($("headline-text"), told);
  document.title = state === "bad" ? "! tokenmill" : look.in_flight ? `${short(look.in_flight)} in flight · tokenmill` : "tokenmill";
}

/** What an operator wants to know first: is anything wrong, and if not, is anything going on. */
function headline(look) {
  const waiting = look.depth ? `, ${short(look.depth)} waiting` : "";
  if (!look.workers.length && look.depth) {
    return ["bad", "▲", `No worker: ${plural(look.depth, "request")} waiting`];
  }
  const late = look.workers.filter((worker) => worker.lease_left_s < 0);
  if (late.length) return ["bad", "▲", `${plural(late.length, "worker")} stopped renewing: its requests will be taken over`];
  const letters = look.num_dead_letters ? `; ${plural(look.num_dead_letters, "dead letter")}` : "";
  if (!look.workers.length) return [letters ? "warn" : "idle", letters ? "▲" : "○", `No worker, and nothing waits${letters}`];
  if (!look.in_flight && !look.depth) return [letters ? "warn" : "good", letters ? "▲" : "○", `Idle: ${plural(look.workers.length, "worker")} ready${letters}`];
  return [letters ? "warn" : "good", letters ? "▲" : "●", `Working: ${short(look.in_flight)} in flight${waiting}${letters}`];
}

function showFigures(look) {
  const { rates } = look;
  figure("tokens", rate(rates.decode_tokens_per_s), "generated");
  figure("tokens-note", `${rate(rates.prefill_tokens_per_s)} prompt tokens, ${rate(rates.requests_per_s)} requests a second`);
  if (history.length || rates.decode_tokens_per_s) history.push(rates.decode_tokens_per_s);
  if (history.length > HISTORY) history.shift();
  spark($("spark-tokens"), history);

  figure("waiting", short(look.depth));
  figure("waiting-note", look.oldest_age_s === null ? "nothing is older than now" : `oldest ${duration(look.oldest_age_s)}`);
  const rows = sum(look.workers, "max_num_seqs"), running = sum(look.workers, "num_running");
  figure("flight", short(look.in_flight));
  figure("flight-note", rows ? `${count(running)} of ${count(rows)} rows` : "no rows");
  if (look.first_token_p50_ms === null) figure("first", "–");
  else figure("first", ...ms(look.first_token_p50_ms));
  figure("first-note", look.first_token_p95_ms === null ? "none in the last minute" : `p95 ${ms(look.first_token_p95_ms).join(" ")}, last minute`);

  const pages = sum(look.workers, "num_pages"), free = sum(look.workers, "num_free_pages");
  const used = pages ? (pages - free) / pages : 0;
  if (pages) figure("pages", percent(used), "%");
  else figure("pages", "–");
  figure("pages-note", pages ? `${short(pages - free)} of ${short(pages)} used` : "no worker");
  $("pages").value = used;
  if (rates.cached_share === null) figure("cache", "–");
  else figure("cache", percent(rates.cached_share), "%");
  figure("cache-note", "of all prompt tokens");
  $("cache").value = rates.cached_share ?? 0;
}

function sum(items, name) {
  return items.reduce((total, item) => total + item[name], 0);
}

function spark(svg, values) {
  if (!values.length) return;
  const most = Math.max(1, ...values), step = 120 / (HISTORY - 1), start = 120 - (values.length - 1) * step;
  const points = values.map((value, place) => `${(start + place * step).toFixed(2)},${(31 - (29 * value) / most).toFixed(2)}`);
  if (!svg.firstChild) {
    for (const name of ["area", "line"]) {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      svg.append(path);
    }
  }
  svg.children[0].setAttribute("d", `M${start.toFixed(2)},32L${points.join("L")}L120,32Z`);
  svg.children[1].setAttribute("d", `M${points.join("L")}`);
}

function showLanes(look) {
  const most = Math.max(1, ...look.lanes.map((lane) => lane.backlog + lane.in_flight));
  keyed($("lanes"), look.lanes, (lane) => lane.name, makeLane, (element, lane) => {
    const [, bar, told] = element.children;
    bar.children[0].style.width = `${(100 * lane.in_flight) / most}%`;
    bar.children[1].style.width = `${(100 * lane.backlog) / most}%`;
    bar.setAttribute("aria-label", `${lane.name}: ${lane.in_flight} in flight, ${lane.backlog} waiting`);
    text(told.children[0], short(lane.backlog));
    text(told.children[1], ` wait, ${short(lane.in_flight)} run`);
  });
  const scheduled = look.scheduled ? `, ${count(look.scheduled)} scheduled for later` : "";
  const parts = look.partitions > 1 ? `, over ${look.partitions} partitions` : "";
  text($("lanes-note"), `by lane, first served first${scheduled}${parts}`);
}

function makeLane(lane) {
  const element = make("li"), bar = make("span", "bar"), told = make("span", "count");
  bar.setAttribute("role", "img");
  bar.append(make("span", "flight"), make("span", "wait"));
  told.append(make("b"), make("span"));
  element.append(make("span", "", lane.name), bar, told);
  return element;
}

function showWorkers(look) {
  $("workers-empty").hidden = look.workers.length > 0;
  keyed($("workers"), look.workers, (worker) => worker.name, makeWorker, (element, worker) => {
    const low = worker.lease_left_s < LEASE_LOW_S;
    text(element.children[0].children[1], `${low ? "▲ " : ""}lease ${worker.lease_left_s.toFixed(0)} s`);
    element.children[0].children[1].classList.toggle("bad", low);
    text(element.children[1], [worker.model, worker.device, worker.dtype === "auto" ? "" : worker.dtype].filter(Boolean).join(", "));
    const used = worker.num_pages - worker.num_free_pages;
    const told = [
      rate(worker.rates.decode_tokens_per_s),
      `${worker.num_running} of ${worker.max_num_seqs}`,
      worker.num_pages ? `${percent(used / worker.num_pages)} %` : "–",
      worker.first_token_p50_ms === null ? "–" : ms(worker.first_token_p50_ms).join(" "),
    ];
    told.forEach((value, place) => text(element.children[2].children[place].children[1], value));
  });
  const counts = ["num_preemptions", "num_fenced", "num_reaped", "num_retried"].map((name) => look.workers.reduce((total, worker) => total + worker.totals[name], 0));
  const named = ["preemption", "lost lease", "takeover", "retry"].map((word, place) => [counts[place], word]).filter(([number]) => number);
  text($("workers-note"), named.length ? named.map(([number, word]) => plural(number, word).replace("retrys", "retries")).join(", ") : "no preemption, no takeover, no retry");
}

function makeWorker(worker) {
  const element = make("li"), name = make("div", "name"), list = make("dl");
  const called = make("b", "", worker.name);
  called.title = worker.name;
  name.append(called, make("span", "lease"));
  for (const label of ["Tokens/s", "Rows", "KV pages", "First token"]) {
    const pair = make("div");
    pair.append(make("dt", "", label), make("dd"));
    list.append(pair);
  }
  element.append(name, make("p", "note"), list);
  return element;
}

function showRuns(look) {
  $("runs-card").hidden = look.runs === null;
  const runs = look.runs ?? [];
  $("runs-empty").hidden = runs.length > 0;
  const active = runs.filter((run) => run.state === "running").length;
  text($("runs-note"), active ? `${active} running` : "");
  keyed($("runs"), runs, (run) => run.run_id, makeRun, (element, run) => {
    const [, chip, bar, told, why] = element.children;
    const state = run.is_stopping ? "stopping" : run.state;
    text(chip, state);
    chip.className = `chip ${state}`;
    bar.max = run.num_rows || 1;
    bar.value = run.num_settled;
    const total = run.num_rows === null ? "" : ` of ${short(run.num_rows)}`;
    const parts = [`${short(run.num_settled)}${total} rows`];
    if (run.num_failed) parts.push(`${short(run.num_failed)} failed`);
    if (run.state === "running" && run.eta_s !== null) parts.push(`${duration(run.eta_s)} left`);
    text(told, parts.join(", "));
    told.title = parts.join(", ");
    text(why, run.note ?? "");
    why.hidden = !run.note;
  });
}

function makeRun(run) {
  const element = make("li"), name = make("b", "", run.out), bar = make("progress");
  name.title = run.run_id;
  bar.setAttribute("aria-label", `Progress of ${run.out}`);
  element.append(name, make("span", "chip"), bar, make("span", "told"), make("span", "why note"));
  return element;
}

function showLetters(look, about) {
  const letters = look.dead_letters;
  $("letters-empty").hidden = letters.length > 0;
  $("redrive-all").hidden = !about.can_redrive || !letters.length;
  const more = look.num_dead_letters > letters.length ? `, the newest ${letters.length} shown` : "";
  text($("letters-note"), look.num_dead_letters ? `${count(look.num_dead_letters)}${more}` : "");
  keyed($("letters"), letters, (letter) => letter.name, (letter) => makeLetter(letter, about), () => {});
}

function makeLetter(letter, about) {
  const element = make("li"), id = make("b", "", letter.request_id || letter.name);
  id.title = `${letter.name}, ${letter.num_bytes} bytes, lane ${letter.lane}`;
  element.append(id, time(letter.at_ms));
  if (about.can_redrive) {
    const button = make("button", "redrive", "Redrive");
    button.type = "button";
    button.dataset.letter = letter.name;
    button.setAttribute("aria-label", `Redrive ${letter.request_id || letter.name}`);
    element.append(button);
  }
  element.append(make("span", "why", letter.reason));
  return element;
}

function showFailures(look) {
  $("failures-empty").hidden = look.failures.length > 0;
  text($("failures-note"), look.failures.length ? "of these workers, the newest first" : "");
  keyed($("failures"), look.failures, (failure) => `${failure.request_id}@${failure.at_ms}`, (failure) => {
    const element = make("li");
    element.append(make("b", "", failure.request_id), time(failure.at_ms), make("span", "why", failure.code));
    return element;
  }, () => {});
}

function time(milliseconds) {
  const element = make("time", "", clock(milliseconds));
  element.dateTime = new Date(milliseconds).toISOString();
  return element;
}
