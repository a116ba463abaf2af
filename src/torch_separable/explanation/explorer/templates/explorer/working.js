// The derivation of a layer, line by line: a count in symbols, in numbers, and its result.

function workingOf(stages, word) {
  const lines = stages.flatMap((stage) => stageWorking(stage, word));
  if (stages.length > 1) return [...lines, ...totalWorking(stages, word)];
  const g = stages[0].spec.groups;
  if (g > 1) lines.push(line(stages[0].name, word("step.share"), "1/g", `1/${g}`, share(1 / g), word("unit.of_dense")));
  return lines;
}

const line = (part, title, symbols, numbers, result, unit = "") => ({
  part,
  title,
  symbols,
  numbers,
  result: unit ? `${result} ${unit}` : result,
});

function stageWorking(stage, word) {
  const { spec, name, input, output } = stage;
  const [C, M, g] = [spec.in, spec.out, spec.groups];
  const kernel = spec.kernel.join("·");
  const lines = [];
  if (!isPointwise(spec) || Math.max(...spec.stride) > 1) lines.push(outputLine(stage, word));
  if (g > 1) {
    lines.push(line(name, word("step.depth"), "C/g", `${C}/${g}`, count(C / g)));
    lines.push(line(name, word("step.filters"), "M/g", `${M}/${g}`, count(M / g)));
  }
  const seen = g > 1 ? "(C/g)" : "C";
  const one = product(spec.kernel) * (C / g);
  lines.push(line(name, word("step.one_filter"), dots("k·k", seen), dots(kernel, C / g), count(one)));
  const numbers = dots(...factorsOf(spec));
  lines.push(
    line(name, word("step.weights"), dots("k·k", seen, "M"), numbers, count(stage.weights), word("unit.weights")),
  );
  lines.push(
    line(
      name,
      word("step.bias"),
      word("symbols.bias"),
      `${count(stage.weights)} + ${M}`,
      count(stage.parameters),
      word("unit.parameters"),
    ),
  );
  const pixels = `${count(stage.weights)} · ${output.join("·")}`;
  lines.push(line(name, word("step.macs"), word("symbols.macs"), pixels, count(stage.macs), word("unit.macs")));
  const moved = `${FLOAT32_BYTES}·(${dots(C, ...input)} + ${count(stage.parameters)} + ${dots(M, ...output)})`;
  lines.push(line(name, word("step.bytes"), word("symbols.bytes"), moved, count(stage.bytes), word("unit.bytes")));
  const flops = `2 · ${count(stage.macs)} / ${count(stage.bytes)}`;
  const intensity = count((2 * stage.macs) / stage.bytes);
  lines.push(line(name, word("step.intensity"), word("symbols.intensity"), flops, intensity, word("unit.intensity")));
  return lines;
}

function outputLine({ spec, name, input, output }, word) {
  const { kernel: k, stride: s, padding: p, dilation: d } = spec;
  const worked = input.map((n, i) => `⌊(${n} + 2·${p[i]} − ${d[i]}·(${k[i]} − 1) − 1)/${s[i]}⌋ + 1`);
  const distinct = [...new Set(worked)];
  const same = distinct.length === 1 ? word("symbols.each_dimension") : "";
  return line(
    name,
    word("step.output"),
    `⌊(n + 2·p − d·(k − 1) − 1)/s⌋ + 1${same}`,
    distinct.join(", "),
    times(output),
  );
}

function totalWorking(stages, word) {
  const depthwiseFirst = stages[0].name === "depthwise";
  const added = (what) => stages.map((stage) => count(stage[what])).join(" + ");
  const symbols = depthwiseFirst ? "k·k·C·D + C·D·M" : "C·D·M + k·k·D·M";
  const dense = denseMacs(stages);
  const macs = total(stages, "macs");
  // The closed form holds if both stages apply each weight equally often; pointwise first with a stride does not.
  const closed = product(stages[0].output) === product(stages[1].output);
  const ratio = closed ? ` = ${depthwiseFirst ? "D/M" : "D/C"} + D/(k·k)` : "";
  return [
    line(
      "together",
      word("step.both_weights"),
      symbols,
      added("weights"),
      count(total(stages, "weights")),
      word("unit.weights"),
    ),
    line(
      "together",
      word("step.both_biases"),
      word("symbols.both_parameters"),
      added("parameters"),
      count(total(stages, "parameters")),
      word("unit.parameters"),
    ),
    line("together", word("step.both_macs"), word("symbols.both_macs"), added("macs"), count(macs), word("unit.macs")),
    line(
      "together",
      word("step.share"),
      word("symbols.share") + ratio,
      `${count(macs)} / ${count(dense)}`,
      share(macs / dense),
      word("unit.of_dense"),
    ),
  ];
}

function denseMacs(stages) {
  const spatial = stages.find((stage) => !isPointwise(stage.spec)) ?? stages[0];
  return product(spatial.spec.kernel) * stages[0].spec.in * stages.at(-1).spec.out * product(stages.at(-1).output);
}

// "Grouped convolution 4 → 8, 3×3, 2 groups"
function titleOf(stages, word) {
  const [first, last] = [stages[0], stages.at(-1)];
  const channels = `${first.spec.in} → ${last.spec.out}`;
  if (stages.length === 1) {
    const groups = first.spec.groups > 1 ? word("title.groups", { groups: first.spec.groups }) : "";
    return word(`title.${first.name}`, { channels, kernel: times(first.spec.kernel) }) + groups;
  }
  const order = first.name === "depthwise" ? "depthwise_first" : "pointwise_first";
  const spatial = order === "depthwise_first" ? first : last;
  const rank = first.spec.out / (order === "depthwise_first" ? first.spec.in : last.spec.out);
  const multiplier = rank > 1 ? word("title.multiplier", { rank }) : "";
  return word(`title.${order}`, { channels, kernel: times(spatial.spec.kernel) }) + multiplier;
}

function nameOf({ name }, word) {
  if (name.groups) return word(`name.${name.key}`, { groups: name.groups });
  return word(`name.${name.key}`) + (name.rank > 1 ? `, D=${name.rank}` : "");
}
