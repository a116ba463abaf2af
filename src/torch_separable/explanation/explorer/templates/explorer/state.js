// The state of the page: read from its address, kept within what a convolution allows, written to its address.

const PAIRS = ["kernel", "input", "stride", "padding", "dilation"];
const NUMBERS = ["in", "out", "groups", "depth_multiplier"];
const LANGUAGES = ["en", "zh"];

// "3" and "3x5" as [3, 3] and [3, 5]; null where it is neither, or out of bounds.
function readPair(text, [least, most]) {
  const found = /^\s*(\d{1,6})\s*(?:[x×,]\s*(\d{1,6})\s*)?$/.exec(text);
  if (!found) return null;
  const pair = [Number(found[1]), Number(found[2] ?? found[1])];
  return pair.every((value) => least <= value && value <= most) ? pair : null;
}

function readNumber(text, limits) {
  return /^\s*\d+\s*$/.test(text) ? (readPair(text, limits) ?? [null])[0] : null;
}

const writePair = (pair, sign = "x") => (pair[0] === pair[1] ? `${pair[0]}` : pair.join(sign));

function readEntry(name, text, limits) {
  if (name === "show") return KINDS.includes(text) ? text : null;
  if (name === "lang") return LANGUAGES.includes(text) ? text : null;
  if (text === "auto" && ["padding", "pixel"].includes(name)) return text;
  if (name === "pixel") return readPair(text, [0, 9999]);
  if (PAIRS.includes(name)) return readPair(text, limits[name]);
  return NUMBERS.includes(name) ? readNumber(text, limits[name]) : null;
}

// The state in an address' fragment, and the entries of it that could not be read.
function readAddress(fragment, start, limits) {
  const state = { ...start };
  const unread = [];
  for (const [name, text] of new URLSearchParams(fragment.replace(/^#/, ""))) {
    const value = readEntry(name, text, limits);
    if (value === null) unread.push(text ? `${name}=${text}` : name);
    else state[name] = value;
  }
  return { state, unread };
}

function writeAddress(state) {
  const text = (value) => (Array.isArray(value) ? writePair(value) : `${value}`);
  return (
    "#" +
    Object.entries(state)
      .map(([name, value]) => `${name}=${text(value)}`)
      .join("&")
  );
}

// Numbers of groups that are neither one group nor one for each channel.
const betweenGroups = (layer) =>
  commonDivisors(layer.in, layer.out).filter((g) => g > 1 && !isDepthwise({ in: layer.in, groups: g }));

// Why a kind of layer cannot be had, as a key and values for words; null where it can.
function whyNot(layer, kind) {
  const channels = { in: layer.in, out: layer.out };
  if (kind === "grouped" && !betweenGroups(layer).length) return ["why.no_groups", channels];
  if (kind === "depthwise" && layer.in === 1) return ["why.one_channel", channels];
  if (kind === "depthwise" && layer.out % layer.in)
    return ["why.not_divided", { groups: layer.in, name: "out_channels", channels: layer.out }];
  if (kind.endsWith("_first") && product(layer.kernel) === 1) return ["why.nothing_to_separate", channels];
  return null;
}

// Why a number of groups cannot be chosen, in the words of the library's error.
function whyNotGroups(layer, groups) {
  const broken = ["in", "out"].find((name) => layer[name] % groups);
  return broken ? ["why.not_divided", { groups, name: `${broken}_channels`, channels: layer[broken] }] : null;
}

// Why there is no output, again as the library says it.
function whyNoOutput(layer) {
  const spec = specOf(layer);
  if (Math.min(...outputSize(spec, layer.input)) >= 1) return null;
  const tuple = (pair) => `(${pair.join(", ")})`;
  const { kernel, dilation, padding } = spec;
  return [
    "why.no_output",
    { input: tuple(layer.input), kernel: tuple(kernel), dilation: tuple(dilation), padding: tuple(padding) },
  ];
}

// The numbers of groups on offer: those that divide, one for each channel, and the first few that do not.
function groupsOffered(layer) {
  const few = Array.from({ length: Math.min(8, Math.max(layer.in, layer.out)) }, (_, i) => i + 1);
  const offered = new Set([...few, ...commonDivisors(layer.in, layer.out), layer.in]);
  return [...offered].sort((one, other) => one - other);
}

// A state that can be shown, and what had to be changed for it, as keys and values for words.
function settle(wanted) {
  const state = { ...wanted };
  const notices = [];
  if (state.show === "grouped") Object.assign(state, choosingGroups(state, state.groups));
  const between = betweenGroups(state);
  if (between.length && !between.includes(state.groups)) {
    const nearest = between.filter((groups) => groups <= state.groups).at(-1) ?? between[0];
    if (state.show === "grouped")
      notices.push(whyNotGroups(state, state.groups), ["notice.groups_now", { groups: nearest }]);
    state.groups = nearest;
  }
  const reason = whyNot(state, state.show);
  if (reason) {
    notices.push(reason, ["notice.standard", {}]);
    state.show = "standard";
  }
  if (state.pixel !== "auto" && !whyNoOutput(state)) {
    const size = outputSize(specOf(state), state.input);
    state.pixel = state.pixel.map((at, i) => Math.min(at, size[i] - 1));
  }
  return { state, notices };
}

// The output pixel that is computed: the chosen one, by default the one in the middle.
const pixelOf = (state, output) => (state.pixel === "auto" ? output.map((n) => Math.floor((n - 1) / 2)) : state.pixel);

// The number of groups of the shown layer; null for a separable one, which sets its own.
const groupsOf = (state) => ({ standard: 1, grouped: state.groups, depthwise: state.in })[state.show] ?? null;

// What choosing a number of groups shows.
function choosingGroups(layer, groups) {
  if (groups === 1) return { show: "standard" };
  return groups === layer.in && layer.out % layer.in === 0 ? { show: "depthwise" } : { show: "grouped", groups };
}
