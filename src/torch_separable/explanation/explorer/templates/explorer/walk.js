// One output pixel computed step by step: the first filter multiplication by multiplication, the others filter by
// filter. Input and weights are small integers computed from their position.

const inputAt = (c, i, j) => (7 * c + 5 * i + 3 * j + c * i + i * j) % 5;
const weightAt = (stage, m, c, u, v) => ((3 * m + 5 * c + 7 * u + 2 * v + u * v + m * c + stage) % 5) - 2;

// The input position of tap (u, v) in the window of an output pixel.
function tapAt({ stride, padding, dilation }, [row, column], u, v) {
  return [row * stride[0] - padding[0] + u * dilation[0], column * stride[1] - padding[1] + v * dilation[1]];
}

const inside = ([i, j], [rows, columns]) => i >= 0 && j >= 0 && i < rows && j < columns;

// The value of an input channel of a stage at a pixel; 0 outside.
function channelValue(stages, stage, channel, at) {
  if (!inside(at, stages[stage].input)) return 0;
  return stage === 0 ? inputAt(channel, ...at) : outputValue(stages, stage - 1, channel, at);
}

// The result of filter `m` at a pixel without bias; results that a second stage reads are cached.
const remembered = new WeakMap();

function outputValue(stages, stage, m, pixel) {
  if (!remembered.has(stages)) remembered.set(stages, new Map());
  const values = remembered.get(stages);
  const key = `${stage} ${m} ${pixel}`;
  if (!values.has(key))
    values.set(key, partialSum(stages, stage, m, pixel, stages[stage].spec.in / stages[stage].spec.groups, 0));
  return values.get(key);
}

// The sum after `channels` whole channels and `taps` taps of the next one.
function partialSum(stages, stage, m, pixel, channels, taps) {
  const { spec } = stages[stage];
  const [depth, perGroup] = [spec.in / spec.groups, spec.out / spec.groups];
  const first = Math.floor(m / perGroup) * depth;
  const area = product(spec.kernel);
  let sum = 0;
  for (let n = 0; n < channels * area + taps; n++) {
    const [c, tap] = [Math.floor(n / area), n % area];
    const [u, v] = [Math.floor(tap / spec.kernel[1]), tap % spec.kernel[1]];
    sum += channelValue(stages, stage, first + c, tapAt(spec, pixel, u, v)) * weightAt(stage, m, c, u, v);
  }
  return sum;
}

// The pixel that each stage computes. Pointwise first, the second stage reads a window of pixels of the first: show the
// one in the middle of the window, clamped to the image.
function pixelsOf(stages, pixel) {
  if (stages.length === 1) return [pixel];
  const { spec } = stages[1];
  const [u, v] = spec.kernel.map((k) => Math.floor((k - 1) / 2));
  const middle = tapAt(spec, pixel, u, v).map((at, i) => Math.min(Math.max(at, 0), stages[1].input[i] - 1));
  return [middle, pixel];
}

// The steps, each with the number of weights used so far.
function walkOf(scene, pixel) {
  const { stages } = scene;
  const pixels = pixelsOf(stages, pixel);
  let used = 0;
  const steps = stages.flatMap((stage, i) => {
    const [, ...others] = scene.layout.filters[i];
    const perFilter = stage.weights / stage.spec.out;
    const common = { stage: i, pixel: pixels[i], before: pixels.slice(0, i) };
    const made = [];
    const push = (step, weights) =>
      made.push({ ...common, ...step, ...windowOf(stage, pixels[i]), used: (used += weights) });
    for (const step of filterSteps(stage, scene.shown[i], pixels[i])) push(step, step.weights);
    ranges([0, ...others.map(({ index }) => index)], stage.spec.out).forEach((filters) => {
      const channels = [
        linkOf(stage.spec, groupOf(stage.spec, filters[0])).inputs[0],
        linkOf(stage.spec, groupOf(stage.spec, filters[1])).inputs[1],
      ];
      push({ kind: "filters", filters, channels, complete: true }, perFilter * (filters[1] - filters[0] + 1));
    });
    const reused = i === 0 && stages.length > 1 && product(stages[1].spec.kernel) > 1;
    if (reused)
      push(
        { kind: "neighbours", filters: [0, stage.spec.out - 1], channels: [0, stage.spec.in - 1], complete: true },
        0,
      );
    return made;
  });
  return steps;
}

const groupOf = (spec, filter) => Math.floor(filter / (spec.out / spec.groups));

// The window of an output pixel on its input, in cells, and whether it extends over the edge.
function windowOf({ spec, input }, pixel) {
  const [top, left] = tapAt(spec, pixel, 0, 0);
  const [bottom, right] = tapAt(spec, pixel, spec.kernel[0] - 1, spec.kernel[1] - 1);
  return {
    window: [top, left, bottom + 1, right + 1],
    padded: top < 0 || left < 0 || bottom >= input[0] || right >= input[1],
  };
}

// Filter 0: every tap of the drawn channels, the others in one step.
function filterSteps({ spec, input }, slabs, pixel) {
  const area = product(spec.kernel);
  const depth = spec.in / spec.groups;
  const last = depth * area;
  let done = 0;
  return ranges(slabs, depth, true).flatMap(([from, to, gap]) => {
    const common = { filters: [0, 0], channels: [from, to], slabs: [from, to] };
    if (gap) {
      done += (to - from + 1) * area;
      return [{ ...common, kind: "channels", weights: (to - from + 1) * area, done, complete: done === last }];
    }
    return Array.from({ length: area }, (_, n) => {
      const tap = [Math.floor(n / spec.kernel[1]), n % spec.kernel[1]];
      const at = tapAt(spec, pixel, ...tap);
      done += 1;
      return {
        ...common,
        kind: "tap",
        tap,
        at,
        outside: !inside(at, input),
        weights: 1,
        done,
        complete: done === last,
      };
    });
  });
}

// [first, last] of each entry: itself, or for null the range between its neighbours. Unless `all`, omit the first.
function ranges(entries, total, all = false) {
  const spans = entries.map((entry, i) =>
    entry === null ? [entries[i - 1] + 1, (entries[i + 1] ?? total) - 1, true] : [entry, entry, false],
  );
  return all ? spans : spans.slice(1);
}
