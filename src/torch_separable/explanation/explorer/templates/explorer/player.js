// Player of the steps: the current step, playback and manual stepping.

const calm = matchMedia("(prefers-reduced-motion: reduce)");
let at = 0; // the step: 0 is before the first, steps + 1 is the end
let timer = null;

function doneBefore(step) {
  const { stages } = drawn.scene;
  const pixels = pixelsOf(stages, pixelOf(state, stages.at(-1).output));
  if (at === 0) return [];
  if (!step) return stages.map((stage, i) => ({ stage: i, filters: stage.spec.out, pixel: pixels[i] }));
  return pixels
    .slice(0, step.stage + 1)
    .map((pixel, i) => ({ stage: i, pixel, filters: i < step.stage ? stages[i].spec.out : step.filters[0] }));
}

const stepNow = () => drawn.steps[at - 1] ?? null;

function renderStep() {
  const { scene, steps, stages, title } = drawn;
  const step = stepNow();
  const { weights, macs } = costsOf(stages);
  const description = figureWords(stages, word);
  fill(find("figure"), drawFigure(scene, { word, title, description, step, done: doneBefore(step) }));
  const narration = find("narration");
  narration.setAttribute("aria-live", timer ? "off" : "polite");
  if (step) narration.textContent = narrationOf(stages, step, word);
  else if (at) narration.textContent = word("walk.end", { weights: count(weights), macs: count(macs) });
  else narration.textContent = word("walk.start", { filters: stages.at(-1).spec.out, weights: count(weights) });
  const near = step ?? (at ? steps.at(-1) : { ...steps[0], pending: true });
  fill(find("closeup"), drawCloseup(scene, near, Math.min(360, find("closeup").clientWidth), word));
  const used = at === 0 ? 0 : (step ?? steps.at(-1)).used;
  find("used").textContent = word("walk.used", { used: count(used), weights: count(weights) });
  find("used-bar").style.width = `${(100 * used) / weights}%`;
  find("progress").value = at;
  find("progress").setAttribute(
    "aria-valuetext",
    `${word("walk.step", { step: at, steps: steps.length + 1 })}. ${find("used").textContent}`,
  );
  find("play").setAttribute("aria-label", word(timer ? "walk.pause" : "walk.play"));
  find("play").classList.toggle("playing", Boolean(timer));
  for (const [id, end] of [
    ["first", 0],
    ["back", 0],
    ["next", steps.length + 1],
    ["last", steps.length + 1],
  ]) {
    find(id).setAttribute("aria-disabled", `${at === end}`);
  }
}

function goTo(step) {
  at = Math.max(0, Math.min(drawn.steps.length + 1, step));
  renderStep();
}

// The first channel plays slowly, the others faster; slower throughout with prefers-reduced-motion.
function delayOf(step) {
  const area = step ? product(drawn.stages[step.stage].spec.kernel) : 1;
  const brisk = area > 1 && step.kind === "tap" && step.done > area;
  return (brisk ? 130 : 480) * (calm.matches ? 2 : 1);
}

function play() {
  if (at > drawn.steps.length) at = 0;
  const tick = () => {
    if (at > drawn.steps.length) return pause();
    timer = setTimeout(tick, delayOf(drawn.steps[at]));
    goTo(at + 1);
  };
  tick();
}

function pause() {
  stop();
  renderStep();
}

function stop() {
  clearTimeout(timer);
  timer = null;
}

function rewind() {
  stop();
  at = 0;
}

function walk(action) {
  if (action === "play") return timer ? pause() : play();
  stop();
  goTo({ first: 0, back: at - 1, next: at + 1, last: Infinity }[action]);
}
