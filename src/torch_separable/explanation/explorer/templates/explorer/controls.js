// Input: fields, radio groups, saving, and selecting a pixel.

const ROOM_IN_FILE = 900;

// Read a field; an invalid value is replaced by the last valid one, and the reason is shown.
function readField(name) {
  const text = find(`field-${name}`).value;
  const value = PAIRS.includes(name) ? readPair(text, data.limits[name]) : readNumber(text, data.limits[name]);
  if (value !== null) return change({ [name]: value });
  renderControls();
  const [least, most] = data.limits[name];
  say([[PAIRS.includes(name) ? "notice.pair" : "notice.field", { name: word(`controls.${name}`), least, most }]]);
}

function nudge(name, by) {
  const [least, most] = data.limits[name];
  const bounded = (value) => Math.max(least, Math.min(most, by(value)));
  const value = name === "padding" ? specOf(state).padding : state[name];
  change({ [name]: Array.isArray(value) ? value.map(bounded) : bounded(value) });
}

const KEYS = {
  ArrowUp: (value) => value + 1,
  ArrowDown: (value) => value - 1,
  PageUp: (value) => 2 * value,
  PageDown: (value) => Math.floor(value / 2),
};

// Arrow keys move within a radio group; a disabled button can be focused, so that its reason is announced.
function radioKeys(event, choose) {
  const buttons = [...event.currentTarget.querySelectorAll("[role=radio]")];
  const here = buttons.indexOf(event.target);
  const moves = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: -1 };
  if (here < 0 || !(event.key in moves)) return;
  event.preventDefault();
  const next = buttons.at(moves[event.key] % buttons.length);
  next.focus();
  choose(next.dataset.value);
}

function chooseKind(kind) {
  const reason = whyNot(state, kind);
  if (reason) say([reason]);
  else change({ show: kind });
}

function chooseGroups(value) {
  const groups = Number(value);
  const reason = whyNotGroups(state, groups);
  if (reason) say([reason]);
  else change(choosingGroups(state, groups));
}

function chooseAlternative({ kind, groups, rank }) {
  const changes = { show: kind };
  if (kind === "grouped") changes.groups = Number(groups);
  if (kind.endsWith("_first")) changes.depth_multiplier = Number(rank);
  change(changes);
}

async function save(what, form) {
  const tree = what === "figure" ? figureForFile() : comparisonForFile();
  const coloured = forFile(tree, colourReader(find("light")));
  const shown = what === "figure" ? state.show : "comparison";
  const name = `${shown}-${state.in}-${state.out}-${state.kernel.join("x")}.${form}`;
  download(form === "svg" ? svgBlob(coloured) : await pngBlob(coloured), name);
  say([["figure.saved", { name }]]);
}

function figureForFile() {
  const { stages, title, dense } = drawn;
  const step = stepNow();
  const description = figureWords(stages, word);
  return drawForFile(stages, ROOM_IN_FILE, { word, title, dense, description, step, done: doneBefore(step) });
}

const comparisonForFile = () => drawComparison(state, `${state.in} → ${state.out}, ${times(state.kernel)}`, word);

// A pixel of the output can also be selected in the figure.
function pixelUnder(event) {
  const { scene } = drawn;
  const frame = find("figure").querySelector("svg").getBoundingClientRect();
  const scale = scene.width / frame.width;
  const [x, y] = [(event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale];
  const last = scene.stages.length;
  const panel = panelOf(scene, last - 1);
  const column = columnOf(panel, "sheets", last);
  const { depth, width } = scaled(column.size, panel.unit);
  const [rows, columns] = scene.sizes[last];
  for (const item of shownOf(scene.layout.channels[last])) {
    const [left, bottom] = sheetCorner(panel, column, item);
    const back = (bottom - 0.05 * panel.unit - y) / UP;
    const along = x - left - back * RIGHT;
    if (back >= 0 && back < depth && along >= 0 && along < width) {
      return [Math.floor((1 - back / depth) * rows), Math.floor((along / width) * columns)].map((value, i) =>
        Math.min(value, [rows, columns][i] - 1),
      );
    }
  }
  return null;
}

const onClick = (nodes, act) => nodes.forEach((node) => node.addEventListener("click", () => act(node.dataset)));

function listen() {
  for (const name of fields) listenToField(find(`field-${name}`), name);
  listenToRadios(find("groups"), chooseGroups);
  listenToRadios(find("cards"), chooseKind);
  onClick(all("[data-step]"), ({ field, step }) => nudge(field, (value) => value + Number(step)));
  onClick([find("auto")], () => change({ padding: state.padding === "auto" ? specOf(state).padding : "auto" }));
  onClick(all("[data-example]"), ({ example }) => change({ pixel: "auto", ...data.examples[example] }));
  onClick(all("[data-lang]"), ({ lang }) => change({ lang }));
  onClick(all("[data-walk]"), ({ walk: action }) => walk(action));
  onClick(all("[data-save]"), ({ save: what, form }) => save(what, form.toLowerCase()));
  find("choices").addEventListener("click", ({ target }) => target.dataset.kind && chooseAlternative(target.dataset));
  find("progress").addEventListener("input", ({ target }) => {
    stop();
    goTo(Number(target.value));
  });
  const pixelFields = [find("pixel-row"), find("pixel-column")];
  const readPixel = () => change({ pixel: pixelFields.map(({ value }) => Math.max(0, Math.floor(Number(value)))) });
  for (const input of pixelFields) input.addEventListener("change", readPixel);
  find("figure").addEventListener("click", (event) => {
    const pixel = pixelUnder(event);
    if (pixel) change({ pixel });
  });
  addEventListener("popstate", readLocation);
  addEventListener("hashchange", readLocation);
  addEventListener("beforeprint", () => all("details").forEach((each) => each.setAttribute("open", "")));
  listenToRoom(find("figure"));
}

function listenToField(input, name) {
  input.addEventListener("change", () => readField(name));
  input.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    nudge(name, KEYS[event.key]);
  });
}

function listenToRadios(group, choose) {
  group.addEventListener("keydown", (event) => radioKeys(event, choose));
  group.addEventListener("click", ({ target }) => {
    const radio = target.closest("[role=radio]");
    if (radio) choose(radio.dataset.value);
  });
}

// Lay out the figure again when its width changes.
function listenToRoom(region) {
  let room = region.clientWidth;
  const observer = new ResizeObserver(() => {
    if (region.clientWidth === room) return;
    room = region.clientWidth;
    renderFigure();
  });
  observer.observe(region);
}
