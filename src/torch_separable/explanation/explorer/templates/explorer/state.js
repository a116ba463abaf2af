// The state of the page: read from the address, validated, written to the address.

const PAIRS = ["kernel", "input", "stride", "padding", "dilation"];
const NUMBERS = ["in", "out", "groups", "depth_multiplier"];
const LANGUAGES = ["en", "zh"];

// Parse "3" as [3, 3] and "3x5" as [3, 5]; null if it is neither, or out of bounds.
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

// The state in the address' fragment, and its invalid entries.
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

// Numbers of groups other than 1 and one per channel.
const betweenGroups = (layer) =>
  commonDivisors(layer.in, layer.out).filter((g) => g > 1 && !isDepthwise({ in: layer.in, groups: g }));

// Why a kind of layer is not available, as a key and values for a text; null if it is.
function whyNot(layer, kind) {
  const channels = { in: layer.in, out: layer.out };
  if (kind === "grouped" && !betweenGroups(layer).length) return ["why.no_groups", channels];
  if (kind === "depthwise" && layer.in === 1) return ["why.one_channel", channels];
  if (kind === "depthwise" && layer.out % layer.in)
    return ["why.not_divided", { groups: layer.in, name: "out_channels", channels: layer.out }];
  if (kind.endsWith("_first") && product(layer.kernel) === 1) return ["why.nothing_to_separate", channels];
  return null;
}

// Why a number of groups is invalid, with the text of the library's error.
function whyNotGroups(layer, groups) {
  const broken = ["in", "out"].find((name) => layer[name] % groups);
  return broken ? ["why.not_divided", { groups, name: `${broken}_channels`, channels: layer[broken] }] : null;
}

// Why there is no output, with the text of the library's error.
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

// The offered numbers of groups: all divisors, one per channel, and the first few that do not divide.
function groupsOffered(layer) {
  const few = Array.from({ length: Math.min(8, Math.max(layer.in, layer.out)) }, (_, i) => i + 1);
  const offered = new Set([...few, ...commonDivisors(layer.in, layer.out), layer.in]);
  return [...offered].sort((one, other) => one - other);
}

// The nearest valid state, and the changes that it needed, as keys and values for texts.
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

// The output pixel to compute: the selected one, by default the one in the middle.
const pixelOf = (state, output) => (state.pixel === "auto" ? output.map((n) => Math.floor((n - 1) / 2)) : state.pixel);

// The number of groups of the selected layer; null for a separable one, which determines its own.
const groupsOf = (state) => ({ standard: 1, grouped: state.groups, depthwise: state.in })[state.show] ?? null;

// The kind of layer that a number of groups selects.
function choosingGroups(layer, groups) {
  if (groups === 1) return { show: "standard" };
  return groups === layer.in && layer.out % layer.in === 0 ? { show: "depthwise" } : { show: "grouped", groups };
}
