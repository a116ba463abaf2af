// The formula of a layer in numbers, with a label for each factor; and the layer as code.

// The label of each factor of a stage's formula.
function factorLabels(stages, i, word) {
  const groups = stages[i].spec.groups > 1;
  if (stages.length === 1)
    return ["factor.kernel", groups ? "factor.depth_groups" : "factor.depth", "factor.filters"].map((key) => word(key));
  if (stages[0].name === "depthwise") {
    const keys = [
      ["factor.kernel", "factor.one_each", "factor.middle_depthwise"],
      ["factor.kernel", "factor.middle_pointwise", "factor.filters"],
    ][i];
    return keys.map((key) => word(key));
  }
  return [
    ["factor.kernel", "factor.depth", "factor.middle_pointwise_first"],
    ["factor.kernel", "factor.rank", "factor.filters"],
  ][i].map((key) => word(key));
}

const factor = (value, label, extra) =>
  element("span", { class: `factor ${extra ?? ""}` }, element("b", {}, value), " ", element("small", {}, label));
const sign = (mark) => element("span", { class: "sign" }, ` ${mark} `);

function equation(terms, mark, result) {
  const bound = (before, term) => element("span", { class: "term" }, sign(before), term);
  return element(
    "p",
    { class: "equation" },
    terms[0],
    terms.slice(1).map((term) => bound(mark, term)),
    bound("=", result),
  );
}

function formula(stages, word) {
  const parts = stages.map((stage, i) => {
    const labels = factorLabels(stages, i, word);
    const terms = factorsOf(stage.spec).map((value, n) => factor(value, labels[n]));
    const pixels = factor(
      stage.output.join("·"),
      word(i < stages.length - 1 && stages[1].name === "depthwise" ? "factor.pixels_in" : "factor.pixels_out"),
    );
    return element(
      "div",
      { class: stages.length > 1 ? "stage" : "stage single" },
      stages.length > 1 ? element("h3", {}, `${i + 1}. ${word(`part.${stage.name}`)}`) : null,
      equation(terms, "·", factor(count(stage.weights), word("factor.weights"), "result")),
      equation(
        [factor(count(stage.weights), word("factor.weights")), pixels],
        "·",
        factor(count(stage.macs), word("factor.macs"), "result"),
      ),
      stages.length === 1
        ? element("p", { class: "soft" }, word("factor.biases", { parameters: count(stage.parameters) }))
        : null,
    );
  });
  if (stages.length === 1) return parts;
  const sum = (what, label) =>
    equation(
      stages.map((stage) => factor(count(stage[what]), word(`part.${stage.name}`))),
      "+",
      factor(count(total(stages, what)), word(label), "result"),
    );
  const together = [
    element("h3", {}, word("factor.together")),
    sum("weights", "factor.weights"),
    sum("macs", "factor.macs"),
    element("p", { class: "soft" }, word("factor.biases", { parameters: count(total(stages, "parameters")) })),
  ];
  return [parts, element("div", { class: "stage" }, together)];
}

// The layer as a line of PyTorch.
function code(state) {
  const spec = specOf(state);
  const tuple = (pair) => (pair[0] === pair[1] ? `${pair[0]}` : `(${pair.join(", ")})`);
  const named = [
    ["stride", 1],
    ["padding", 0],
    ["dilation", 1],
  ]
    .filter(([name, usual]) => spec[name].some((value) => value !== usual))
    .map(([name]) => `${name}=${tuple(spec[name])}`);
  const groups = groupsOf(state);
  if (groups > 1) named.push(`groups=${groups}`);
  if (!groups && state.show === "pointwise_first") named.push('order="pointwise_first"');
  if (!groups && state.depth_multiplier > 1) named.push(`depth_multiplier=${state.depth_multiplier}`);
  const positional = [spec.in, spec.out, tuple(spec.kernel)];
  const layer = `${groups ? "nn.Conv2d" : "ts.nn.DepthwiseSeparableConv2d"}(${[...positional, ...named].join(", ")})`;
  const explained = `print(ts.explain(layer, (${state.input.join(", ")})))`;
  return ["from torch import nn", "import torch_separable as ts", "", `layer = ${layer}`, explained].join("\n");
}
