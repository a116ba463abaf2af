// Layout of the figure, as in explanation/layout.py: which channels and filters are shown, at which height and in
// which group's colour. Heights are positive upwards, and the middle of the figure is 0.

const ELLIPSIS_PITCH = 0.5;
const BAND_GAP = 0.3;
const MOST_GROUPS = 4;
const MOST_SLABS = 4;
// By the number of groups shown: the most channels to show of a group, and how many of them precede the ellipsis.
const MOST_INPUTS = { 1: [6, 3], 2: [4, 2] };
const MOST_FILTERS = { 1: [8, 3], 2: [4, 2] };
const MOST_CROWDED = [2, 1];

// All of `total` items up to `most`; else the first few, null for the omitted ones, and the last.
function elide(total, most, head = most - 2) {
  const first = Array.from({ length: total <= most ? total : head }, (_, i) => i);
  return total <= most ? first : [...first, null, total - 1];
}

const slabsOf = (depth) => elide(depth, MOST_SLABS);

function arrange(stages, sheetPitch, filterPitches) {
  const rows = filterPitches.map((pitch) => Math.max(sheetPitch, pitch));
  if (stages.length === 1) {
    const { inputs, filters, fans } = bands(stages[0], sheetPitch, rows[0]);
    return { channels: [inputs, filters], filters: [filters], fans: [fans] };
  }
  if (stages[0].name === "depthwise") {
    const { inputs, filters, fans } = bands(stages[0], sheetPitch, rows[0]);
    const outputs = spread(elide(stages[1].spec.out, ...MOST_FILTERS[1]), rows[1], 0, null);
    return {
      channels: [inputs, filters, outputs],
      filters: [filters, outputs],
      fans: [fans, [mixing(filters, outputs)]],
    };
  }
  const { inputs: middle, filters: outputs, fans } = bands(stages[1], rows[0], rows[1]);
  const inputs = spread(elide(stages[0].spec.in, ...MOST_INPUTS[1]), sheetPitch, 0, null);
  return { channels: [inputs, middle, outputs], filters: [middle, outputs], fans: [[mixing(inputs, middle)], fans] };
}

const shownOf = (items) => items.filter((item) => item.index !== null);
const heightsOf = (items) => shownOf(items).map((item) => item.y);

// The fan of a pointwise stage: every filter reads every channel.
const mixing = (inputs, filters) => ({
  group: 0,
  inputs: [inputs[0].y, inputs.at(-1).y],
  filters: heightsOf(filters),
  colour: null,
});

// Stack the groups of a stage from top to bottom, each with its input channels beside its filters.
function bands(stage, inputPitch, filterPitch) {
  const shown = elide(stage.spec.groups, MOST_GROUPS);
  const groups = shown.filter((group) => group !== null);
  const stacked = shown.map((group) => {
    if (group === null) return { group, height: ELLIPSIS_PITCH, inputs: [null], filters: [null] };
    const link = linkOf(stage.spec, group);
    const inputs = within(link.inputs, ...(MOST_INPUTS[groups.length] ?? MOST_CROWDED));
    const filters = within(link.outputs, ...(MOST_FILTERS[groups.length] ?? MOST_CROWDED));
    return { group, height: Math.max(heightOf(inputs, inputPitch), heightOf(filters, filterPitch)), inputs, filters };
  });
  const placed = { inputs: [], filters: [], fans: [] };
  let y = (stacked.reduce((sum, band) => sum + band.height, 0) + BAND_GAP * (stacked.length - 1)) / 2;
  for (const { group, height, inputs, filters } of stacked) {
    const colour = group === null ? null : groups.indexOf(group);
    const one = spread(inputs, inputPitch, y - height / 2, colour);
    const other = spread(filters, filterPitch, y - height / 2, colour);
    if (group !== null)
      placed.fans.push({ group, inputs: [one[0].y, one.at(-1).y], filters: heightsOf(other), colour });
    placed.inputs.push(...one);
    placed.filters.push(...other);
    y -= height + BAND_GAP;
  }
  return placed;
}

const within = ([first, last], most, head) =>
  elide(last - first + 1, most, head).map((i) => (i === null ? null : first + i));
const heightOf = (indices, pitch) => indices.reduce((sum, index) => sum + (index === null ? ELLIPSIS_PITCH : pitch), 0);

function spread(indices, pitch, centre, colour) {
  let y = centre + heightOf(indices, pitch) / 2;
  return indices.map((index) => {
    const height = index === null ? ELLIPSIS_PITCH : pitch;
    y -= height;
    return { index, y: y + height / 2, colour: index === null ? null : colour };
  });
}
