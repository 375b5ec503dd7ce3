// Draws one worker's batch: a column for each step, a line for each place in the batch, the newest step at the right.
// A prefill fills its line's whole height, a decode half of it, an end has a mark of its own: shapes first, then colours.

const STEP_PX = 5; // at least: fewer steps fit on a phone
const MOST_LINE_PX = 20;
const LINES_PX = 320; // of all lines together, unless they are few
const STRIP_PX = 44; // tokens of each step, below the lines
const GAP_PX = 14;
const NUM_STEPS = 240;
const LAG_STEPS = 1.5; // how far what is shown may be behind, in pictures: so that it moves evenly between two

export class Batch {
  constructor(canvas, tip, swatches) {
    this.canvas = canvas;
    this.tip = tip;
    this.swatches = swatches;
    this.picture = null;
    this.shown = 0; // the step at the right edge, in parts of a step
    this.perPicture = 1;
    this.perMs = 0;
    this.at = 0;
    this.isStill = matchMedia("(prefers-reduced-motion: reduce)");
    this.frame = null;
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolor());
    document.addEventListener("themechange", () => this.recolor());
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerdown", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
    this.recolor();
  }

  /** Null: nobody's. Of another worker: `isNew`, and begins where it is. */
  show(picture, isNew = false) {
    const now = performance.now();
    if (picture !== null && (isNew || this.picture === null || picture.step < this.picture.step)) {
      this.shown = picture.step;
      this.perMs = 0;
    } else if (picture !== null && picture.step > this.picture.step) {
      const perMs = (picture.step - this.picture.step) / Math.max(50, Math.min(2000, now - this.at));
      this.perMs = this.perMs ? 0.7 * this.perMs + 0.3 * perMs : perMs;
      this.perPicture = picture.step - this.picture.step;
    }
    if (picture === null || this.picture === null || picture.step !== this.picture.step) this.at = now;
    const numRows = this.picture?.num_rows;
    this.picture = picture;
    if (picture !== null) this.note(picture);
    if (picture?.num_rows !== numRows) this.resize();
    else this.wake();
  }

  note(picture) {
    const running = picture.bars.filter((bar) => isRunning(bar, picture.step));
    const decoding = running.filter((bar) => bar.decode_from !== null).length;
    const data = this.canvas.dataset;
    data.step = picture.step;
    data.running = running.length;
    data.ended = picture.bars.filter((bar) => bar.finish_reason !== null).length;
    data.prefills = picture.bars.filter((bar) => bar.prefill.length).length;
    this.canvas.setAttribute("aria-label",
      `The batch, step by step: ${running.length} of ${picture.num_rows} rows, ${decoding} decode, ` +
      `${running.length - decoding} prefill`);
  }

  // Sizes and colours

  linePx() {
    const rows = this.picture?.num_rows ?? 16;
    return Math.min(MOST_LINE_PX, Math.max(LINES_PX / rows, 2));
  }

  resize() {
    const rows = this.picture?.num_rows ?? 16;
    const height = Math.round(rows * this.linePx()) + GAP_PX + STRIP_PX;
    if (this.canvas.style.height !== `${height}px`) this.canvas.style.height = `${height}px`;
    const scale = window.devicePixelRatio || 1;
    const width = this.canvas.clientWidth;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
    }
    this.wake();
  }

  recolor() {
    const of = (name, property) => getComputedStyle(this.swatches[name])[property];
    this.colors = {
      prefill: of("prefill", "backgroundColor"),
      decode: of("decode", "backgroundColor"),
      ink: of("finish", "backgroundColor"),
      bad: of("cut", "color"),
      soft: getComputedStyle(this.tip.parentElement.querySelector(".empty")).color,
      card: getComputedStyle(this.canvas.closest(".card")).backgroundColor,
    };
    this.wake();
  }

  // Time

  wake() {
    this.frame ??= requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.frame = null;
    const latest = this.picture?.step ?? 0;
    const passed = Math.min(100, now - (this.before ?? now));
    this.before = now;
    if (this.isStill.matches || !this.perMs) this.shown = latest;
    else {
      const behind = latest - this.shown;
      const haste = behind > LAG_STEPS * this.perPicture ? 1.6 : behind < 0.4 * this.perPicture ? 0.8 : 1;
      this.shown = Math.min(latest, this.shown + passed * this.perMs * haste);
      if (behind > 0.8 * NUM_STEPS) this.shown = latest;
    }
    this.draw();
    if (this.shown < latest) this.wake();
    else this.before = undefined;
  }

  // Drawing

  draw() {
    const scale = window.devicePixelRatio || 1;
    const ink = this.canvas.getContext("2d");
    ink.setTransform(scale, 0, 0, scale, 0, 0);
    const width = this.canvas.width / scale, height = this.canvas.height / scale;
    ink.clearRect(0, 0, width, height);
    if (this.picture === null) return;
    this.stepPx = Math.max(STEP_PX, width / NUM_STEPS);
    this.xOf = (step) => width - (this.shown - step + 1) * this.stepPx; // the step's left edge
    this.drawLines(ink, width);
    for (const bar of this.picture.bars) this.drawBar(ink, bar);
    this.drawGrid(ink, width);
    for (const bar of this.picture.bars) this.drawEnds(ink, bar, width);
    this.drawStrip(ink, width, height);
  }

  drawLines(ink, width) {
    const px = this.linePx();
    ink.globalAlpha = 0.1;
    ink.fillStyle = this.colors.soft;
    for (let row = 0; row < this.picture.num_rows; row += 1) {
      ink.fillRect(0, Math.round((row + 0.5) * px) - 0.5, width, 1);
    }
    ink.globalAlpha = 1;
  }

  drawBar(ink, bar) {
    const px = this.linePx(), top = bar.row * px, thick = Math.max(1, px - (px > 5 ? 2 : 0.5));
    if (bar.decode_from !== null) {
      const from = this.xOf(bar.decode_from);
      const thin = Math.max(1, 0.55 * thick);
      ink.fillStyle = this.colors.decode;
      ink.fillRect(from, top + (px - thin) / 2, this.xOf(Math.min(bar.last, this.shown) + 1) - from, thin);
    }
    ink.fillStyle = this.colors.prefill;
    for (const [step] of bar.prefill) {
      if (step <= this.shown) ink.fillRect(this.xOf(step), top + (px - thick) / 2, this.stepPx, thick);
    }
  }

  /** Thin lines in the background's colour make cells of the bars: one for each step. */
  drawGrid(ink, width) {
    const height = this.picture.num_rows * this.linePx();
    ink.fillStyle = this.colors.card;
    ink.globalAlpha = 0.55;
    for (let step = Math.floor(this.shown); this.xOf(step) > -this.stepPx; step -= 1) {
      ink.fillRect(this.xOf(step + 1) - 1, 0, 1, height);
    }
    ink.globalAlpha = 1;
  }

  drawEnds(ink, bar, width) {
    const px = this.linePx(), middle = (bar.row + 0.5) * px, half = Math.max(1.5, Math.min(7, 0.44 * px));
    const x = this.xOf(bar.last + 1) - 1;
    if (bar.finish_reason === null || bar.last > this.shown || x < 0 || x > width) return;
    if (bar.finish_reason === "stop" || bar.finish_reason === "length") {
      ink.fillStyle = this.colors.ink;
      ink.fillRect(x - 2, middle - half, Math.min(3, 0.6 * this.stepPx), 2 * half);
      return;
    }
    ink.strokeStyle = this.colors.bad;
    ink.lineWidth = Math.max(1.2, 0.12 * px);
    ink.beginPath();
    ink.moveTo(x - half, middle - half);
    ink.lineTo(x + half, middle + half);
    ink.moveTo(x - half, middle + half);
    ink.lineTo(x + half, middle - half);
    ink.stroke();
  }

  /** Below: how many tokens each step had, of the most that it may have. */
  drawStrip(ink, width, height) {
    const { steps, step: latest } = this.picture;
    const most = Math.max(8, ...steps.map(([, prefill, decode]) => prefill + decode));
    steps.forEach(([, prefill, decode], place) => {
      const step = latest - steps.length + 1 + place, x = this.xOf(step);
      if (step > this.shown || x < -this.stepPx) return;
      const up = (STRIP_PX * decode) / most, over = (STRIP_PX * prefill) / most;
      ink.fillStyle = this.colors.decode;
      ink.fillRect(x, height - up, this.stepPx - 1, up);
      ink.fillStyle = this.colors.prefill;
      ink.fillRect(x, height - up - over, this.stepPx - 1, over);
    });
    ink.fillStyle = this.colors.soft;
    ink.font = "11px " + getComputedStyle(document.body).fontFamily;
    ink.textBaseline = "top";
    const told = `tokens a step, up to ${most}`;
    ink.globalAlpha = 0.85;
    ink.fillStyle = this.colors.card;
    ink.fillRect(0, height - STRIP_PX - 3, ink.measureText(told).width + 8, 16);
    ink.globalAlpha = 1;
    ink.fillStyle = this.colors.soft;
    ink.fillText(told, 1, height - STRIP_PX);
  }

  // Looking closer

  point(event) {
    const bar = this.barAt(event.offsetX, event.offsetY);
    this.tip.hidden = bar === null;
    if (bar === null) return;
    this.tip.replaceChildren(...linesOf(bar, this.picture.step).map((line) => {
      const element = document.createElement("div");
      element.textContent = line;
      return element;
    }));
    const left = Math.min(event.offsetX + 14, this.canvas.clientWidth - this.tip.offsetWidth);
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${event.offsetY + 16}px`;
  }

  barAt(x, y) {
    if (this.picture === null || !this.stepPx) return null;
    const row = Math.floor(y / this.linePx());
    const step = Math.floor(this.shown + 1 - (this.canvas.clientWidth - x) / this.stepPx);
    return this.picture.bars.findLast((bar) => bar.row === row && bar.first <= step && step <= bar.last) ?? null;
  }
}

export function isRunning(bar, step) {
  return bar.finish_reason === null && (bar.last === step || bar.decode_from === null);
}

/** What a row does, in a word. */
export function doing(bar, step) {
  if (bar.finish_reason !== null) return bar.finish_reason;
  if (!isRunning(bar, step)) return "put out";
  return bar.decode_from === null ? "prefill" : "decode";
}

export function nameOf(bar) {
  return bar.choice ? `${bar.request_id} #${bar.choice}` : bar.request_id;
}

function linesOf(bar, step) {
  const drawn = Math.max(0, bar.num_done - bar.num_prompt);
  return [
    nameOf(bar),
    `row ${bar.row}, ${doing(bar, step)}`,
    `${Math.min(bar.num_done, bar.num_prompt)} of ${bar.num_prompt} prompt tokens`,
    `${drawn} generated, ${bar.limit - bar.num_prompt} at most`,
  ];
}
