// The cost of a convolution: cost/formulas.py, explanation/stages.py and explanation/arithmetic.py in two dimensions.
// Sizes are pairs [rows, columns]. check.js compares all results with the library's.

const KINDS = ["standard", "grouped", "depthwise", "depthwise_first", "pointwise_first"];
const FLOAT32_BYTES = 4;

const product = (numbers) => numbers.reduce((one, other) => one * other, 1);
const times = (numbers) => numbers.join("×");
const dots = (...factors) => factors.join("·");

const isPointwise = (spec) => product(spec.kernel) === 1;
const isDepthwise = (spec) => spec.groups === spec.in && spec.in > 1;
const weightsOf = (spec) => product(spec.kernel) * (spec.in / spec.groups) * spec.out;
const parametersOf = (spec) => weightsOf(spec) + (spec.bias ? spec.out : 0);

// Entries below 1 mean that the output is empty.
function outputSize({ kernel, stride, padding, dilation }, input) {
  return input.map((n, i) => Math.floor((n + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) / stride[i]) + 1);
}

const factorsOf = (spec) => [
  spec.kernel.join("·"),
  spec.groups > 1 ? `(${spec.in}/${spec.groups})` : `${spec.in}`,
  `${spec.out}`,
];

const formulaOf = (spec) =>
  `${dots(...factorsOf(spec))} = ${weightsOf(spec)}${spec.bias ? ` (+${spec.out} bias)` : ""}`;

function commonDivisors(one, other) {
  const smaller = Math.min(one, other);
  return Array.from({ length: smaller }, (_, i) => i + 1).filter((g) => one % g === 0 && other % g === 0);
}

// The padding that keeps the size at stride 1, for an odd kernel.
const keepingSize = (kernel, dilation) => kernel.map((k, i) => Math.floor((dilation[i] * (k - 1)) / 2));

const specOf = (layer, groups = 1) => ({
  in: layer.in,
  out: layer.out,
  kernel: layer.kernel,
  stride: layer.stride,
  padding: layer.padding === "auto" ? keepingSize(layer.kernel, layer.dilation) : layer.padding,
  dilation: layer.dilation,
  groups,
  bias: true,
});

function stageOf(name, spec, input) {
  const output = outputSize(spec, input);
  const weights = weightsOf(spec);
  const parameters = parametersOf(spec);
  const macs = weights * product(output);
  const bytes = FLOAT32_BYTES * (spec.in * product(input) + parameters + spec.out * product(output));
  return { name, spec, input, output, weights, parameters, macs, bytes };
}

function singleStage(spec, input) {
  const single = isPointwise(spec) ? "pointwise" : "standard";
  return stageOf(isDepthwise(spec) ? "depthwise" : spec.groups > 1 ? "grouped" : single, spec, input);
}

function separableStages(layer, order, rank) {
  const middle = rank * (order === "depthwise_first" ? layer.in : layer.out);
  const mixing = { in: layer.in, out: middle, kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
  const pointwise = { ...mixing, groups: 1, bias: true };
  if (order === "pointwise_first") {
    const first = stageOf("pointwise", pointwise, layer.input);
    return [first, stageOf("depthwise", { ...specOf(layer, layer.out), in: middle }, first.output)];
  }
  const first = stageOf("depthwise", { ...specOf(layer, layer.in), out: middle }, layer.input);
  return [first, stageOf("pointwise", { ...pointwise, in: middle, out: layer.out }, first.output)];
}

// The convolutions of one kind of layer, in execution order.
function stagesOf(layer, kind) {
  const groups = { standard: 1, grouped: layer.groups, depthwise: layer.in }[kind];
  if (groups) return [singleStage(specOf(layer, groups), layer.input)];
  return separableStages(layer, kind, layer.depth_multiplier);
}

const total = (stages, what) => stages.reduce((sum, stage) => sum + stage[what], 0);

// Which filters read which channels, group by group; ranges are [first, last].
function linkOf({ in: inputs, out: outputs, groups }, group) {
  const [read, made] = [inputs / groups, outputs / groups];
  return {
    group,
    inputs: [group * read, (group + 1) * read - 1],
    outputs: [group * made, (group + 1) * made - 1],
  };
}

// The layers of the same channels, dense first, with the selected kind marked.
function alternativesOf(layer, shown) {
  const listed = new Map();
  const list = (kind, groups, rank, stages) => {
    const name =
      stages.length === 1
        ? { key: stages[0].name, groups: stages[0].spec.groups }
        : { key: stages.map((stage) => stage.name).join("_"), rank };
    const same = stages.length === 1 ? kind !== "grouped" || groups === layer.groups : rank === layer.depth_multiplier;
    const chosen = kind === shown && same;
    listed.set(JSON.stringify(name), { name, kind, groups, rank, stages, chosen });
  };
  for (const groups of commonDivisors(layer.in, layer.out)) {
    const stage = singleStage(specOf(layer, groups), layer.input);
    const kind = groups === 1 ? "standard" : isDepthwise(stage.spec) ? "depthwise" : "grouped";
    list(kind, groups, 1, [stage]);
  }
  if (product(layer.kernel) > 1) {
    const ranks = new Set([1, shown.endsWith("_first") ? layer.depth_multiplier : 1]);
    for (const rank of ranks) {
      for (const order of ["depthwise_first", "pointwise_first"]) {
        list(order, 1, rank, separableStages(layer, order, rank));
      }
    }
  }
  return [...listed.values()];
}

// Three significant digits as Python formats them: ties round to even, where JavaScript rounds up.
function threeFigures(value) {
  const [mantissa, exponent] = value.toExponential(30).split("e");
  const tie = /^50*$/.test(mantissa.slice(4));
  const down = tie && Number(mantissa[3]) % 2 === 0;
  return String(Number(down ? `${mantissa.slice(0, 4)}e${exponent}` : value.toPrecision(3)));
}

function nearest(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

const whole = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, ",");
const count = (value) =>
  Number.isInteger(value) ? whole(value) : value < 999.5 ? threeFigures(value) : whole(nearest(value));
const share = (value) => `${100 * value >= 100 ? whole(nearest(100 * value)) : threeFigures(100 * value)} %`;
