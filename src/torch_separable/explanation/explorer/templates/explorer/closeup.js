// The numbers of one step: the window, the filter's weights, and the results so far.

function drawCloseup(scene, step, width, word) {
  const { stages } = scene;
  const area = product(stages[step.stage].spec.kernel);
  const parts = [];
  if (step.kind === "tap")
    parts.push(area > 1 ? windowGrids(scene, step, width, word) : channelRows(scene, step, width, word));
  parts.push(outputRow(scene, step, width, word));
  let height = 0;
  const placed = parts.map((part) => {
    const group = element("g", { transform: `translate(0 ${height})` }, part.drawn);
    height += part.height + 14;
    return group;
  });
  const frame = {
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    "aria-hidden": "true",
    "font-family": "var(--sans)",
  };
  return element("svg", frame, placed);
}

function cell(x, y, size, value, { colour = null, current = false, done = false, empty = false } = {}) {
  const edge = { stroke: current ? INK : "var(--cell)", "stroke-width": current ? 2.5 : 0.75 };
  const fill = empty ? "var(--paper)" : paint(colour, done || current ? "top" : "faint");
  const font = value === null ? 0 : Math.min(13, size * 0.55, (1.5 * size) / signed(value).length);
  const number = font < 7 ? [] : text(x + size / 2, y + size / 2 + 0.5, signed(value), { "font-size": round(font) });
  return [element("rect", { x: round(x), y: round(y), width: size, height: size, fill, ...edge }), number];
}

const signed = (value) => String(value).replace("-", "−");

function grid(x, y, size, [rows, columns], of) {
  const cells = Array.from({ length: rows * columns }, (_, n) => [Math.floor(n / columns), n % columns, n]);
  const drawn = cells.map(([u, v, n]) => of(x + v * size, y + u * size, u, v, n));
  return drawn.sort((one, other) => Boolean(one.current) - Boolean(other.current)).map(({ cells }) => cells);
}

function colourOf(scene, step) {
  const item = scene.layout.channels[step.stage].find(({ index }) => index === step.channels[0]);
  return item ? item.colour : null;
}

function windowGrids(scene, step, width, word) {
  const { stages } = scene;
  const { spec, input } = stages[step.stage];
  const [channel, filter] = [step.channels[0], step.filters[0]];
  const gap = 34;
  const size = Math.min(30, Math.floor((width - gap) / 2 / Math.max(...spec.kernel)));
  const at = step.pending ? -1 : step.tap[0] * spec.kernel[1] + step.tap[1];
  const colour = colourOf(scene, step);
  const second = size * spec.kernel[1] + gap;
  const of = (valueAt, tint) => (x, y, u, v, n) => ({
    current: n === at,
    cells: cell(x, y, size, valueAt(u, v), { colour: tint(u, v), current: n === at, done: n < at }),
  });
  const seen = of(
    (u, v) => channelValue(stages, step.stage, channel, tapAt(spec, step.pixel, u, v)),
    (u, v) => (inside(tapAt(spec, step.pixel, u, v), input) ? colour : null),
  );
  const weights = of(
    (u, v) => weightAt(step.stage, filter, channel, u, v),
    () => colour,
  );
  const middle = 22 + (size * spec.kernel[0]) / 2;
  return {
    height: 22 + size * spec.kernel[0],
    drawn: [
      text(0, 8, word(step.stage ? "close.between" : "close.input", { channel }), { "text-anchor": "start" }),
      text(second, 8, word("close.filter", { filter }), { "text-anchor": "start" }),
      grid(1, 22, size, spec.kernel, seen),
      text(size * spec.kernel[1] + gap / 2, middle, "·", { "font-size": 22 }),
      grid(second, 22, size, spec.kernel, weights),
    ],
  };
}

// A 1×1 filter has one weight per channel: draw them side by side.
function channelRows(scene, step, width, word) {
  const { stages } = scene;
  const { spec } = stages[step.stage];
  const slabs = scene.shown[step.stage];
  const label = Math.max(wordsWidth(word("close.values")), wordsWidth(word("close.weights"))) + 8;
  const size = Math.min(30, Math.floor((width - label) / slabs.length));
  const row = (y, valueOf) =>
    slabs.map((slab, i) => {
      const x = label + i * size;
      if (slab === null) return text(x + size / 2, y + size / 2, "…");
      const colour = scene.layout.channels[step.stage].find(({ index }) => index === slab)?.colour ?? null;
      return cell(x, y, size, valueOf(slab), {
        colour,
        current: slab === step.slabs[0] && !step.pending,
        done: slab < step.slabs[0],
      });
    });
  return {
    height: 2 * size + 26,
    drawn: [
      slabs.map((slab, i) => (slab === null ? [] : text(label + (i + 0.5) * size, 8, `${slab}`))),
      text(0, 20 + size / 2, word("close.values"), { "text-anchor": "start" }),
      row(20, (slab) => channelValue(stages, step.stage, slab, tapAt(spec, step.pixel, 0, 0))),
      text(0, 26 + size * 1.5, word("close.weights"), { "text-anchor": "start" }),
      row(26 + size, (slab) => weightAt(step.stage, step.filters[0], slab, 0, 0)),
    ],
  };
}

// The results of the drawn filters at this pixel so far.
function outputRow(scene, step, width, word) {
  const { stages } = scene;
  const items = scene.layout.filters[step.stage];
  const size = Math.min(34, Math.floor(width / items.length));
  const title = word(step.stage === stages.length - 1 ? "close.outputs" : "close.middles", {
    pixel: step.pixel.join(", "),
  });
  const drawn = items.map(({ index, colour }, i) => {
    const x = 1 + i * size;
    if (index === null) return text(x + size / 2, 20 + size / 2, "…");
    const [first, last] = step.filters;
    const made = !step.pending && (index < first || (index <= last && step.complete));
    const running = index === first && !made && step.kind !== "filters" && !step.pending;
    const value = made ? outputValue(stages, step.stage, index, step.pixel) : running ? sumAt(stages, step) : null;
    const here = first <= index && index <= last && !step.pending;
    return [
      cell(x, 20, size - 2, value, { colour, current: here, done: made, empty: !made && !here }),
      text(x + size / 2 - 1, 20 + size + 8, `${index}`, { "font-size": 11, fill: "var(--soft)" }),
    ];
  });
  return { height: size + 36, drawn: [text(0, 8, title, { "text-anchor": "start" }), drawn] };
}

// The running sum of the current filter.
function sumAt(stages, step) {
  const area = product(stages[step.stage].spec.kernel);
  return partialSum(stages, step.stage, step.filters[0], step.pixel, Math.floor(step.done / area), step.done % area);
}

// A step as text.
function narrationOf(stages, step, word) {
  const [filter, last] = step.filters;
  const [channel, to] = step.channels;
  if (step.kind === "tap") {
    const { spec } = stages[step.stage];
    const value = channelValue(stages, step.stage, channel, step.at);
    const slab = step.slabs[0];
    const weight = weightAt(step.stage, filter, slab, ...step.tap);
    const sum = sumAt(stages, step);
    const key = step.outside ? "walk.outside" : product(spec.kernel) > 1 ? "walk.tap" : "walk.mix";
    const values = {
      filter,
      channel,
      tap: step.tap.join(", "),
      value: signed(value),
      weight: signed(weight),
      product: signed(value * weight),
      sum: signed(sum),
    };
    return word(key, { ...values, what: word(step.stage ? "walk.between" : "walk.input") });
  }
  if (step.kind === "channels")
    return word("walk.channels", { filter, from: channel, to, sum: signed(sumAt(stages, step)) });
  if (step.kind === "neighbours") return word("walk.neighbours");
  if (filter === last)
    return word("walk.filter", { filter, value: signed(outputValue(stages, step.stage, filter, step.pixel)) });
  return word("walk.filters", { from: filter, to: last });
}
