const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const DRIFT = 0.05, PATIENCE = 400;  // s between videos, ms between two corrections

/* One bar plays, pauses and scrubs all videos of a row. The longest is the clock, the others follow. */
function inStep(row) {
  const videos = [...row.querySelectorAll("video")], fps = Number(row.dataset.fps);
  const bar = row.querySelector(".bar"), button = bar.querySelector("button");
  const range = bar.querySelector("input"), shown = bar.querySelector("span");
  let wish = !still, seen = false, running = false, corrected = 0;
  const lead = () => videos.reduce((best, video) => video.duration > best.duration ? video : best);
  const frames = () => Math.max(1, Math.round((lead().duration || 0) * fps));

  function show() {
    const frame = Math.min(frames() - 1, Math.floor(lead().currentTime * fps + 1e-3));
    range.max = frames() - 1;
    range.value = frame;
    shown.textContent = `${lead().currentTime.toFixed(2)} s`;
    range.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames()}`);
  }
  function seek(time) {
    for (const video of videos) video.currentTime = Math.min(time, video.duration || time);
  }
  function follow(now) {
    if (!running) return;
    const time = lead().currentTime;
    if (now - corrected > PATIENCE) {
      for (const video of videos) {
        if (video.seeking || time >= video.duration || Math.abs(video.currentTime - time) < DRIFT) continue;
        video.currentTime = time;
        corrected = now;
      }
    }
    show();
    requestAnimationFrame(follow);
  }
  function run() {
    button.textContent = "Pause";
    if (running) return;
    running = true;
    if (lead().ended) seek(0);
    for (const video of videos) video.play().catch(() => {});
    requestAnimationFrame(follow);
  }
  function halt() {
    button.textContent = "Play";
    if (!running) return;
    running = false;
    for (const video of videos) video.pause();
    seek(lead().currentTime);
    show();
  }
  function update() { wish && seen ? run() : halt(); }
  function again(event) {
    if (!running || event.target !== lead()) return;
    const back = videos.map((video) => new Promise((done) => video.addEventListener("seeked", done, { once: true })));
    seek(0);
    Promise.all(back).then(() => { if (running) for (const video of videos) video.play().catch(() => {}); });
  }
  const control = {
    want(value) { wish = value; update(); },
    see(value) { seen = value; update(); },
    toggle() { wish = !running; seen = true; update(); },
  };
  for (const video of videos) {
    video.controls = video.loop = false;
    video.addEventListener("click", control.toggle);
    video.addEventListener("ended", again);
    video.addEventListener("loadedmetadata", show);
    video.addEventListener("seeked", () => { if (!running) show(); });
  }
  button.addEventListener("click", control.toggle);
  range.addEventListener("input", () => {
    const frame = Number(range.value);
    control.want(false);
    // The middle of a frame: its border may show the one before.
    seek((frame + 0.5) / fps);
  });
  range.addEventListener("keydown", (event) => {
    if (event.key === " ") { event.preventDefault(); control.toggle(); }
  });
  bar.hidden = false;
  show();
  return control;
}
