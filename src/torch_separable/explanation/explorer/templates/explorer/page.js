// The page: its state, and drawing after each change.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];

const start = { ...data.start, pixel: "auto", lang: navigator.language.startsWith("zh") ? "zh" : "en" };
const fields = [...PAIRS, "in", "out", "depth_multiplier"];

let state = start;
let drawn = null; // the current content: { stages, dense, title, scene, steps }; null if the layer has no output
const agreement = selfCheck(data.vectors, wordsOfLanguage("en"));

function wordsOfLanguage(language) {
  return (key, values = {}) => {
    if (!(key in data.words[language])) throw new Error(`no words for ${key}`);
    return data.words[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
  };
}

const word = (key, values) => wordsOfLanguage(state.lang)(key, values);

// Replace content and keep the focus.
function fill(region, ...trees) {
  const focused = document.activeElement?.id;
  region.replaceChildren(
    ...trees
      .flat(Infinity)
      .filter((tree) => tree !== null)
      .map((tree) => mount(tree)),
  );
  if (focused && document.activeElement?.id !== focused) find(focused)?.focus({ preventScroll: true });
}

function say(notices) {
  find("notice").textContent = notices.map(([key, values]) => word(key, values)).join("; ");
}

// Every change of the state comes through here; `record` is false if the address already has it.
function change(changes, { record = true, notices = [] } = {}) {
  const settled = settle({ ...state, ...changes });
  state = settled.state;
  if (record && writeAddress(state) !== location.hash) history.pushState(null, "", writeAddress(state));
  if (Object.keys(changes).some((name) => name !== "lang")) rewind();
  render();
  say([...notices, ...settled.notices]);
}

function render() {
  document.documentElement.lang = state.lang === "zh" ? "zh-Hans" : "en";
  for (const node of all("[data-word]")) node.textContent = word(node.dataset.word);
  for (const node of all("[data-label]")) {
    const { label, of, form } = node.dataset;
    node.setAttribute("aria-label", word(label, { name: of && word(of), form }));
  }
  for (const node of all("[data-lang]")) node.setAttribute("aria-pressed", `${node.dataset.lang === state.lang}`);
  renderControls();
  renderAgreement();
  const reason = whyNoOutput(state);
  find("shown").hidden = Boolean(reason);
  if (reason) {
    drawn = null;
    find("result").textContent = word(...reason);
    document.title = word("page.title");
    return;
  }
  const stages = stagesOf(state, state.show);
  drawn = { stages, dense: total(stagesOf(state, "standard"), "macs"), title: titleOf(stages, word) };
  const { weights, parameters, macs } = costsOf(stages);
  const numbers = { weights: count(weights), parameters: count(parameters), macs: count(macs) };
  document.title = `${drawn.title} · torch-separable`;
  find("result").textContent = word("result", { title: drawn.title, ...numbers, share: share(macs / drawn.dense) });
  fill(find("cards"), cards(state, word));
  fill(find("formula"), formula(stages, word));
  fill(find("choices"), choicesTable(state, word));
  fill(find("working"), workingTable(stages, word));
  fill(find("links"), linksTable(stages, word));
  find("code").textContent = code(state);
  const pixel = pixelOf(state, stages.at(-1).output);
  ["row", "column"].forEach((name, i) => {
    find(`pixel-${name}`).value = pixel[i];
    find(`pixel-${name}`).max = stages.at(-1).output[i] - 1;
  });
  renderFigure();
}

function renderControls() {
  for (const name of fields) {
    const value = name === "padding" ? specOf(state).padding : state[name];
    const input = find(`field-${name}`);
    input.value = Array.isArray(value) ? writePair(value, "×") : value;
    input.setAttribute("aria-valuenow", Array.isArray(value) ? value[0] : value);
    input.setAttribute("aria-valuetext", input.value);
  }
  find("auto").setAttribute("aria-pressed", `${state.padding === "auto"}`);
  fill(find("groups"), chips(state, word));
}

function renderFigure() {
  const room = find("figure").clientWidth;
  if (!drawn || !room) return;
  drawn.scene = place(drawn.stages, room, word);
  drawn.steps = walkOf(drawn.scene, pixelOf(state, drawn.stages.at(-1).output));
  find("progress").max = drawn.steps.length + 1;
  renderStep();
}

// Read the address when the page opens, on back and forward, and when it is edited.
function readLocation() {
  const { state: wanted, unread } = readAddress(location.hash, start, data.limits);
  if (drawn && writeAddress(settle(wanted).state) === writeAddress(state) && !unread.length) return;
  change(wanted, { record: false, notices: unread.length ? [["notice.unread", { entries: unread.join(", ") }]] : [] });
}

function renderAgreement() {
  const { checked, failures } = agreement;
  const key = failures.length ? "check.differ" : "check.agree";
  find("check").textContent = word(key, { version: data.version, checked: count(checked), failures: failures.length });
}

listen();
readLocation();
window.separableExplorer = { selfCheck: () => agreement, state: () => ({ ...state }) };
