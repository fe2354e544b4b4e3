// One curve of each run over the steps, as inline SVG, with its values for those who cannot see it.

const WIDTH = 360, HEIGHT = 150, LEFT = 48, RIGHT = 352, TOP = 8, BOTTOM = 128;
const BUCKETS = 300; // more points than this are drawn as the least and the largest of their neighbours
const ROWS = 10;

/** Make an HTML element. */
export function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Write a number in few digits. */
export function short(value) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(4)));
}

export class Curve {
  /** @param {string} name of the metric */
  constructor(name) {
    this.name = name;
    this.runs = []; // {label, style, steps, values}
    this.cursor = null; // a step that is looked at; null: the last one
    this.title = html("span", {}, name);
    this.readout = html("span", { class: "readout" });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
    this.plot = html("div", { class: "plot", role: "slider", tabindex: 0, "aria-label": `${name}: step` }, this.picture);
    this.table = html("table");
    const values = html("details", {}, html("summary", {}, "Values"), html("div", { class: "scroll" }, this.table));
    values.addEventListener("toggle", () => this.drawTable());
    this.values = values;
    this.figure = html("figure", { class: "card curve" },
      html("figcaption", {}, this.title, this.readout), this.plot, values);
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    for (const kind of ["pointerleave", "blur"]) this.plot.addEventListener(kind, () => this.look(null));
  }

  /** Draw anew. `alarms` are steps to mark. */
  update(runs, smooth, alarms) {
    this.runs = runs.filter((run) => run.values.some((value) => value !== null));
    this.figure.hidden = !this.runs.length;
    if (!this.runs.length) return;
    Object.assign(this, { smooth, alarms });
    const steps = this.runs.flatMap((run) => [run.steps[0], run.steps.at(-1)]);
    const numbers = this.runs.flatMap((run) => run.values.filter((value) => value !== null));
    this.x = scale(extent(steps), LEFT, RIGHT);
    const [low, high] = extent(numbers);
    const margin = (high - low) * 0.06 || Math.abs(low) * 0.1 || 1;
    this.y = scale([low - margin, high + margin], BOTTOM, TOP);
    this.plot.setAttribute("aria-valuemin", this.x.low);
    this.plot.setAttribute("aria-valuemax", this.x.high);
    this.picture.replaceChildren(...this.axes(), ...this.lines());
    this.look(this.cursor);
    this.drawTable();
  }

  axes() {
    const rules = ticks(this.y.low, this.y.high, 6).flatMap((value) => [
      svg("line", { class: "rule", x1: LEFT, x2: RIGHT, y1: this.y(value), y2: this.y(value) }),
      svg("text", { x: LEFT - 6, y: this.y(value) + 4, "text-anchor": "end" }, short(value)),
    ]);
    const steps = ticks(this.x.low, this.x.high, 5).filter(Number.isInteger).map((step) =>
      svg("text", { x: this.x(step), y: HEIGHT - 4, "text-anchor": "middle" }, String(step)));
    const marks = this.alarms.map((step) =>
      svg("line", { class: "alarm", x1: this.x(step), x2: this.x(step), y1: TOP, y2: BOTTOM }));
    return [...rules, ...steps, ...marks];
  }

  lines() {
    return this.runs.flatMap(({ style, steps, values }) => {
      const line = (numbers, kind) => svg("path", { class: `${kind} ${style}`, d: this.path(steps, numbers) });
      return this.smooth && steps.length > 4
        ? [line(values, "raw"), line(movingMean(values), "mean")]
        : [line(values, "mean")];
    });
  }

  path(steps, values) {
    let pen = "M"; // lifted where there is no number
    return thin(values).map((index) => {
      const value = values[index];
      if (value === null) { pen = "M"; return ""; }
      // A line of no length, so that a lone point is seen as a dot.
      const stroke = `${pen}${this.x(steps[index]).toFixed(1)} ${this.y(value).toFixed(1)}h0`;
      pen = "L";
      return stroke;
    }).join("");
  }

  /** Show the values at a step: what the pointer and the arrow keys do. */
  look(step) {
    this.cursor = step;
    this.picture.querySelectorAll(".look").forEach((element) => element.remove());
    const shown = Math.round(step ?? this.x.high);
    const found = this.runs.map((run) => ({ ...run, index: nearest(run, shown) }));
    const text = found.map(({ label, values, index }) =>
      `${found.length > 1 ? `${label} ` : ""}${short(values[index])}`).join(" · ");
    this.readout.textContent = `step ${found[0].steps[found[0].index]}: ${text}`;
    this.plot.setAttribute("aria-valuenow", shown);
    this.plot.setAttribute("aria-valuetext", this.readout.textContent);
    if (step === null) return;
    const at = this.x(found[0].steps[found[0].index]);
    this.picture.append(svg("line", { class: "cursor look", x1: at, x2: at, y1: TOP, y2: BOTTOM }),
      ...found.map(({ style, steps, values, index }) =>
        svg("circle", { class: `look ${style}`, r: 3, cx: this.x(steps[index]), cy: this.y(values[index]) })));
  }

  point(event) {
    const box = this.picture.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * WIDTH;
    this.look(Math.min(Math.max(this.x.back(at), this.x.low), this.x.high));
  }

  key(event) {
    const run = this.runs[0];
    const now = nearest(run, this.cursor ?? this.x.high), far = Math.max(Math.round(run.steps.length / 10), 1);
    const target = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1,
      PageDown: now - far, PageUp: now + far, Home: 0, End: run.steps.length - 1 }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    const forward = target > now;
    let index = Math.min(Math.max(target, 0), run.steps.length - 1);
    while (run.values[index] === null && run.steps[index + (forward ? 1 : -1)] !== undefined) index += forward ? 1 : -1;
    this.look(run.steps[index]);
  }

  drawTable() {
    if (!this.values.open) return;
    const steps = [...new Set(this.runs.flatMap((run) => run.steps.slice(-ROWS)))].sort((a, b) => b - a).slice(0, ROWS);
    const row = (tag, cells) => html("tr", {}, ...cells.map((cell) => html(tag, {}, cell)));
    this.table.replaceChildren(
      html("caption", { class: "faint" }, `${this.name}, the last values`),
      html("thead", {}, row("th", ["step", ...this.runs.map((run) => run.label)])),
      html("tbody", {}, ...steps.map((step) =>
        row("td", [String(step), ...this.runs.map((run) => short(run.values[run.steps.indexOf(step)]))]))));
  }
}

function extent(numbers) {
  return numbers.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}

/** A linear map from [low, high] to [from, to], with its inverse as `back`. */
function scale([low, high], from, to) {
  const span = high - low || 1;
  const map = (value) => from + (value - low) / span * (to - from);
  return Object.assign(map, { low, high, back: (at) => low + (at - from) / (to - from) * span });
}

/** Round numbers between low and high, about `count` of them. */
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step), last = Math.floor(high / step);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** Mean of the numbers around each one, a tenth of all to either side; gaps stay gaps. */
function movingMean(values) {
  const sums = [0], counts = [0], reach = Math.max(Math.round(values.length / 10), 1);
  values.forEach((value, index) => {
    sums.push(sums[index] + (value ?? 0));
    counts.push(counts[index] + (value !== null));
  });
  return values.map((value, index) => {
    const from = Math.max(index - reach, 0), to = Math.min(index + reach + 1, values.length);
    return value === null ? null : (sums[to] - sums[from]) / (counts[to] - counts[from]);
  });
}

/** Indices of the points to draw: all, or the least and the largest of each bucket. */
function thin(values) {
  if (values.length <= 2 * BUCKETS) return values.map((_, index) => index);
  const size = values.length / BUCKETS, kept = [];
  for (let bucket = 0; bucket < BUCKETS; bucket++) {
    const from = Math.floor(bucket * size), to = Math.floor((bucket + 1) * size);
    let low = from, high = from;
    for (let index = from; index < to; index++) {
      if ((values[index] ?? Infinity) < (values[low] ?? Infinity)) low = index;
      if ((values[index] ?? -Infinity) > (values[high] ?? -Infinity)) high = index;
    }
    kept.push(...(low === high ? [low] : [Math.min(low, high), Math.max(low, high)]));
  }
  return kept;
}

/** Index of the point with a number that is nearest to a step. */
function nearest({ steps, values }, step) {
  let best = -1;
  steps.forEach((candidate, index) => {
    if (values[index] === null) return;
    if (best < 0 || Math.abs(candidate - step) < Math.abs(steps[best] - step)) best = index;
  });
  return best;
}
