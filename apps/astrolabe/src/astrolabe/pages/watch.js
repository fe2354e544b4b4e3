// Asks the server every two seconds what is new, and shows it.

import { Curve, html, short, svg } from "./curves.js";

const PAUSE = 2000; // milliseconds
const SECTIONS = { // heading: first parts of the names of its metrics, and what they are
  Rewards: [["reward"], "Means over the videos of a step. Steps have other prompts, so judge by the mean over many."],
  Monitors: [["monitor"], "Nothing is trained on these and none has a better end: look at one that drifts while rewards rise."],
  Policy: [["loss", "policy", "kl"], "Losses, and how far the policy is from the reference and from the one that sampled."],
  Advantage: [["advantage"], "How far the videos of a group differ. Where zero_std_fraction is 1, nothing can be learned."],
  Guard: [["guard"], "Alarms, the KL coefficient, and updates that were skipped."],
  Snapshots: [["snapshot"], "How the old policy and the reference follow."],
  Time: [["time", "overlap", "cost"], "Seconds of each phase of a step, and of each reward."],
  Memory: [["memory"], "Largest use so far."],
  Other: [[], "What else was logged."],
};
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const get = (id) => document.getElementById(id);
const wished = new URLSearchParams(location.search); // so that a link or a reload shows the same
const runs = new Map(); // name: what is known of a run
const curves = new Map(); // name of a metric: its Curve
const drawn = {}; // what a part of the page shows, which is left alone while that is the same
let detail = wished.get("detail"); // the run whose samples and settings are shown
let timer = 0, busy = false, again = false;

async function ask(what, query = {}) {
  const answer = await fetch(`api/${what}?${new URLSearchParams(query)}`);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function changed(part, ...content) {
  const text = JSON.stringify(content);
  return drawn[part] !== text && ((drawn[part] = text), true);
}

async function poll() {
  clearTimeout(timer);
  again = busy; // one at a time, or lines would be read twice
  if (busy || document.hidden) return;
  busy = true;
  try {
    await readRuns();
    const run = runs.get(detail);
    for (const one of new Set([...compared(), ...(run ? [run] : [])])) await readMetrics(one);
    if (run) Object.assign(run, await ask("run", { run: detail }));
    showState(run);
    showRuns();
    showAlarms(run);
    showCurves(run);
    if (run) await Promise.all([showSettings(run), showSamples(run)]);
    showContents();
    get("notice").textContent = run?.damaged ? `${run.damaged} damaged lines of metrics.jsonl are left out.` : "";
  } catch (error) {
    get("notice").textContent = `No answer (${error.message}). Trying again; does astrolabe watch still run?`;
  }
  busy = false;
  timer = setTimeout(poll, again ? 0 : PAUSE);
}

const empty = () => ({ offset: 0, mark: "", steps: [], values: {}, damaged: 0 });
const compared = () => [...runs.values()].filter((run) => run.compared);
const style = (run) => `c${[...runs.keys()].indexOf(run.name) % 6}`;

/** Learn which runs there are; one is shown in detail and one compared at least, the newest. */
async function readRuns() {
  const found = await ask("runs");
  for (const name of runs.keys()) if (!found.some((run) => run.name === name)) runs.delete(name);
  for (const run of found) {
    if (!runs.has(run.name)) runs.set(run.name, { ...empty(), compared: wished.getAll("run").includes(run.name) });
    Object.assign(runs.get(run.name), run);
  }
  const newest = found.sort((a, b) => (a.age ?? Infinity) - (b.age ?? Infinity))[0];
  if (!runs.has(detail)) detail = newest?.name ?? null;
  if (newest && !compared().length) runs.get(detail).compared = true;
}

async function readMetrics(run) {
  for (let more = true; more;) {
    const piece = await ask("metrics", { run: run.name, offset: run.offset, mark: run.mark });
    if (piece.reset) Object.assign(run, empty());
    for (const name of Object.keys(piece.values)) run.values[name] ??= run.steps.map(() => null);
    piece.steps.forEach((step, row) => {
      while (run.steps.at(-1) >= step) { // told again: the later word counts
        run.steps.pop();
        for (const values of Object.values(run.values)) values.pop();
      }
      run.steps.push(step);
      for (const [name, values] of Object.entries(run.values)) values.push(piece.values[name]?.[row] ?? null);
    });
    run.damaged += piece.damaged;
    ({ offset: run.offset, mark: run.mark } = piece);
    more = piece.more;
  }
}

function showState(run) {
  const name = detail ?? "astrolabe watch", parts = [];
  if (!run) parts.push("Waiting for a run");
  else if (!run.step) parts.push("Waiting for the first step");
  else {
    parts.push(`Step ${run.step} of ${run.planned}`);
    const each = secondsPerStep(run);
    if (run.step >= run.planned) parts.push("finished");
    else if (run.age > Math.max(60, 5 * each)) parts.push(`no new step for ${clock(run.age)}: saving, or ended`);
    else parts.push(`about ${clock(each * (run.planned - run.step))} left`);
    parts.push(`${short(each)} s a step`);
  }
  document.title = run?.step ? `${run.step}/${run.planned} ${name}` : name;
  get("title").textContent = name;
  get("state").textContent = parts.join(" · ");
  Object.assign(get("progress"), { hidden: !run?.planned, max: run?.planned || 1, value: run?.step ?? 0 });
}

/** Mean over the last steps of what their phases took. */
function secondsPerStep(run) {
  const phases = Object.entries(run.values).filter(([name]) => name.startsWith("time/")).map(([, values]) => values.slice(-20));
  return phases.flat().reduce((sum, seconds) => sum + seconds, 0) / Math.min(run.steps.length, 20);
}

function clock(seconds) {
  const [hours, minutes, rest] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

function showRuns() {
  get("runs").hidden = runs.size < 2;
  for (const run of runs.values()) {
    run.row ??= makeRow(run);
    run.row.box.checked = run.compared;
    run.row.radio.checked = run.name === detail;
    run.row.step.textContent = `${run.step} of ${run.planned ?? "?"}`;
    run.row.total.textContent = short(run.total);
  }
  if (changed("runs", [...runs.keys()])) get("runs-body").replaceChildren(...[...runs.values()].map((run) => run.row.line));
}

function makeRow(run) {
  const box = html("input", { type: "checkbox" }), step = html("td"), total = html("td");
  const radio = html("input", { type: "radio", name: "detail", "aria-label": `Samples and settings of ${run.name}` });
  box.addEventListener("change", () => { run.compared = box.checked; remember(); });
  radio.addEventListener("change", () => { detail = run.name; remember(); });
  const swatch = svg("svg", { class: "swatch", viewBox: "0 0 32 8", "aria-hidden": "true" },
    svg("line", { class: style(run), x1: 0, x2: 32, y1: 4, y2: 4 }));
  const label = html("label", {}, box, " ", run.name, swatch);
  return { box, radio, step, total, line: html("tr", {}, html("td", { class: "text" }, label), step, total, html("td", {}, radio)) };
}

function remember() {
  const choice = new URLSearchParams([...compared().map((run) => ["run", run.name]), ["detail", detail]]);
  history.replaceState(null, "", `?${choice}${location.hash}`);
  poll();
}

/** Steps at which a metric of a run was above zero, with its values. */
const above = (run, name) => run.steps.map((step, row) => [step, run.values[name]?.[row]]).filter(([, value]) => value > 0);

/** Whether nothing could be scored in a step. */
const unscored = (run, step) => run.values["advantage/valid_fraction"]?.[run.steps.indexOf(step)] === 0;

function showAlarms(run) {
  const alarms = run ? above(run, "guard/alarm").map(([step]) => [step, "ALARM. The trained reward rose while a held-out one "
    + "fell: the policy may be gaming its rewards. Look at the newest samples."]) : [];
  const skipped = run ? above(run, "guard/skipped").map(([step, count]) => [step, unscored(run, step)
    ? "no video could be scored, and nothing was learned."
    : `skipped ${count} updates, as a loss or gradient was not finite or none of their videos could be scored.`]) : [];
  const all = [...alarms, ...skipped].sort(([a], [b]) => b - a).map(([step, text]) => `Step ${step}: ${text}`);
  const lines = all.slice(0, 20);
  if (all.length > lines.length) lines.push(`And ${all.length - lines.length} before.`);
  if (run?.skipped.length) lines.push(`Batches kept in skipped/: ${run.skipped.slice(-20).join(", ")}`);
  if (!changed("alarms", detail, lines)) return;
  get("alarms-list").replaceChildren(...(lines.length ? lines : ["None so far."]).map((line) =>
    html("li", { class: lines.length ? "fell" : "faint" }, line)));
  get("state").classList.toggle("fell", lines.length > 0);
}

function showCurves(run) {
  const shown = compared();
  const smooth = get("smooth").checked;
  if (!changed("curves", detail, smooth, shown.map(({ name, steps, mark }) => [name, steps.length, mark]))) return;
  const names = new Set(shown.flatMap((one) => Object.keys(one.values)));
  for (const name of names) if (!curves.has(name)) place(name);
  for (const [name, curve] of curves) {
    const lines = shown.filter((one) => one.values[name])
      .map((one) => ({ label: one.name, style: style(one), steps: one.steps, values: one.values[name] }));
    curve.update(lines, smooth, shown.length === 1 ? above(shown[0], "guard/alarm").map(([step]) => step) : []);
    curve.title.textContent = name + (run?.held_out.includes(name) ? " (held out)" : "");
  }
  get("curves-options").hidden = !names.size;
}

/** Put a new curve into its section, which is made if it is the first. */
function place(name) {
  const known = Object.keys(SECTIONS).find((heading) => SECTIONS[heading][0].includes(name.split("/")[0])) ?? "Other";
  if (!get(known)) {
    const section = html("section", { id: known, "aria-labelledby": `${known}-title` },
      html("h2", { id: `${known}-title` }, known), html("p", { class: "faint" }, SECTIONS[known][1]), html("div", { class: "grid" }));
    const after = Object.keys(SECTIONS).slice(Object.keys(SECTIONS).indexOf(known) + 1).map(get).find(Boolean);
    get("curves").insertBefore(section, after ?? null);
  }
  const curve = new Curve(name);
  curves.set(name, curve);
  get(known).lastChild.append(curve.figure);
}

function showContents() {
  const sections = [...document.querySelectorAll("main section:not([hidden])")];
  if (!changed("contents", sections.map(({ id }) => id))) return;
  get("contents").replaceChildren(...sections.map(({ id }) =>
    html("li", {}, html("a", { href: `#${id}` }, get(`${id}-title`).textContent))));
}

function showSettings(run) {
  if (!changed("settings", detail, run.settings, run.config, run.report)) return;
  const report = html("a", { href: `api/file?${new URLSearchParams({ run: detail, path: "report.html" })}` }, "before and after");
  const pairs = [...run.settings, ...(run.report ? [["report", report]] : [])];
  get("settings").hidden = false;
  get("settings-list").replaceChildren(...pairs.flatMap(([name, text]) => [html("dt", {}, name), html("dd", {}, text)]));
  get("config").textContent = run.config;
}

async function showSamples(run) {
  const select = get("samples-step"), newest = run.samples.at(-1);
  get("samples").hidden = newest === undefined;
  if (changed("sample steps", detail, run.samples)) {
    const wanted = select.value;
    select.replaceChildren(html("option", { value: "" }, `newest (${newest})`),
      ...run.samples.map((step) => html("option", { value: step }, String(step))).reverse());
    select.value = run.samples.map(String).includes(wanted) ? wanted : "";
  }
  if (newest === undefined) return;
  const videos = await ask("samples", { run: detail, step: select.value || newest });
  if (!changed("samples", detail, videos)) return;
  const groups = Map.groupBy(videos, ({ path, group }) => group ?? path);
  get("samples-list").replaceChildren(...[...groups.values()].map((group) =>
    html("figure", { class: "card" }, html("figcaption", {}, group[0].prompt ?? group[0].path),
      html("div", { class: "pair" }, ...group.sort((a, b) => (a.rank ?? Infinity) - (b.rank ?? Infinity) || 0).map(showVideo)))));
}

function showVideo({ path, version, prompt, rank, of, reward, scores }) {
  const place = rank === null ? (of === null ? "" : "not scored") : rank === 1 ? `best of ${of}` : rank === of ? `worst of ${of}` : `rank ${rank} of ${of}`;
  const video = html("video", { controls: "", loop: "", playsinline: "", preload: "metadata",
    "aria-label": `${prompt ?? path} ${place}`, src: `api/file?${new URLSearchParams({ run: detail, path, v: version })}` });
  Object.assign(video, { muted: true, autoplay: !still });
  const lines = Object.entries(reward === null ? scores : { total: reward, ...scores }).map(([name, score]) => html("div", {}, `${name} ${short(score)}`));
  return html("div", {}, video, html("strong", {}, place), ...lines);
}

get("smooth").addEventListener("change", poll);
get("samples-step").addEventListener("change", poll);
document.addEventListener("visibilitychange", poll);
poll();
