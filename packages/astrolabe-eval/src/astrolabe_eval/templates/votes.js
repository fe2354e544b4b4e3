const at = (id) => document.getElementById(id);
const main = document.querySelector("main"), store = `astrolabe-votes-${main.dataset.page}`;
const pairs = [...document.querySelectorAll(".row")].map((row) => ({ row, name: row.dataset.name, control: inStep(row) }));
const choices = [...document.querySelectorAll("[data-choice]")];
let rater = "", votes = {}, place = 0, saved = "";

function keep() {
  try { localStorage.setItem(store, JSON.stringify({ rater, votes })); } catch { at("warning").hidden = false; }
}
function recall() {
  try {
    const old = JSON.parse(localStorage.getItem(store));
    if (!old || typeof old.rater !== "string" || typeof old.votes !== "object") return;
    rater = old.rater;
    for (const { name } of pairs) if (old.votes[name]) votes[name] = old.votes[name];
  } catch { at("warning").hidden = false; }
}
const judged = () => Object.keys(votes).length;

function show() {
  const over = place >= pairs.length;
  at("start").hidden = rater !== "";
  at("vote").hidden = rater === "" || over;
  at("end").hidden = rater === "" || !(over || judged());
  pairs.forEach(({ row, control }, index) => {
    row.hidden = index !== place;
    control.see(rater !== "" && index === place);
  });
  at("progress").value = judged();
  at("where").textContent = `Pair ${place + 1} of ${pairs.length}, ${judged()} judged`;
  at("done").textContent = judged() === pairs.length ? `All ${pairs.length} pairs are judged. Save your votes.`
    : `${judged()} of ${pairs.length} pairs are judged. You can save now and go on later.`;
  at("again").hidden = !over;
  at("back").disabled = place === 0;
  if (over) return;
  const choice = votes[pairs[place].name];
  at("next").disabled = !choice;
  for (const button of choices) button.setAttribute("aria-pressed", String(button.dataset.choice === choice));
}
function go(to) {
  place = Math.max(0, Math.min(pairs.length, to));
  show();
  // What changed is read out, and the arrow keys do not stay on a slider that is gone.
  if (rater !== "") (place < pairs.length ? at(pairs[place].name) : at("done")).focus({ preventScroll: true });
}
function vote(choice) {
  votes[pairs[place].name] = choice;
  keep();
  go(place + 1);
}
function resume() {
  const open = pairs.findIndex(({ name }) => !votes[name]);
  go(open < 0 ? pairs.length : open);
}
function save() {
  saved = JSON.stringify(votes);
  const content = { format: main.dataset.format, page: main.dataset.page, rater, votes };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2) + "\n"], { type: "application/json" }));
  link.download = `votes-${main.dataset.page}-${rater.replace(/[^\p{L}\p{N}-]+/gu, "_")}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

at("start").addEventListener("submit", (event) => {
  event.preventDefault();
  rater = at("rater").value.trim();
  if (!rater) return;
  keep();
  resume();
});
for (const button of choices) button.addEventListener("click", () => vote(button.dataset.choice));
at("back").addEventListener("click", () => go(place - 1));
at("next").addEventListener("click", () => go(place + 1));
at("again").addEventListener("click", () => go(0));
at("save").addEventListener("click", save);
at("other").addEventListener("click", () => {
  if (JSON.stringify(votes) !== saved && !confirm("Your votes are not saved yet. Discard them?")) return;
  rater = "";
  votes = {};
  at("rater").value = "";
  keep();
  go(0);
  at("rater").focus();
});
document.addEventListener("keydown", (event) => {
  if (at("vote").hidden || event.target.tagName === "INPUT" || event.ctrlKey || event.altKey || event.metaKey) return;
  const choice = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" }[event.key];
  if (event.repeat && (choice || event.key === "Backspace")) return;
  if (choice) vote(choice);
  else if (event.key === "Backspace") go(place - 1);
  else if (event.key === " " && event.target.tagName !== "BUTTON") pairs[place].control.toggle();
  else return;
  event.preventDefault();
});
recall();
if (rater) resume(); else show();
