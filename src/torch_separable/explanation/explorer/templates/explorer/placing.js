// Positions of the figure's parts in pixels. Text keeps its size; everything else is scaled to the width. Two stages
// that do not fit side by side are placed one above the other.

const RIGHT = 0.5; // oblique projection: one unit of depth moves a point right by so much
const UP = 0.4; // and up
const SLAB = 0.16;
const LARGEST_UNIT = 52;
const SMALLEST_UNIT = 18;
const SIDE_BY_SIDE_UNIT = 31;
const FONT = 13;
const LINE = 18;

// An upper bound: letters of the widest common system fonts, and square Chinese characters.
const letterWidth = (letter) => (letter > "⺀" ? 1 : 0.63);
const wordsWidth = (words, font = FONT) => [...words].reduce((sum, letter) => sum + letterWidth(letter), 0) * font;
const longest = (lines) => Math.max(0, ...lines.map((line) => wordsWidth(line)));

// Depth and width for rows and columns, to scale unless one would become invisible.
function extentOf(cells, cell, most, least = 0.22) {
  const scale = Math.min(cell, most / Math.max(...cells));
  return { depth: Math.max(cells[0] * scale, least), width: Math.max(cells[1] * scale, least) };
}

const across = ({ depth, width }) => width + depth * RIGHT;

// Sizes of the parts, in units.
function plan(stages) {
  const sizes = [stages[0].input, ...stages.map((stage) => stage.output)];
  const sheets = sizes.map((size) => extentOf(size, 0.36, 1.25));
  const blocks = stages.map((stage) => extentOf(stage.spec.kernel, 0.26, 0.9));
  const shown = stages.map(({ spec }) => slabsOf(spec.in / spec.groups));
  const heights = stages.map((_, i) => blocks[i].depth * UP + SLAB * shown[i].length);
  const pitch = Math.max(...sheets.map(({ depth }) => depth)) * UP + 0.3;
  return {
    stages,
    sizes,
    sheets,
    blocks,
    shown,
    heights,
    layout: arrange(
      stages,
      pitch,
      heights.map((height) => height + 0.3),
    ),
  };
}

// All positions in pixels, at most `room` wide.
function place(stages, room, word) {
  const planned = plan(stages);
  const last = stages.length - 1;
  for (let unit = LARGEST_UNIT; unit >= (last ? SIDE_BY_SIDE_UNIT : SMALLEST_UNIT); unit--) {
    const panel = placePanel(planned, 0, last, unit, word);
    if (panel.width <= room || (!last && unit === SMALLEST_UNIT)) return stack([panel], planned);
  }
  for (let unit = LARGEST_UNIT; ; unit--) {
    const panels = stages.map((_, stage) => placePanel(planned, stage, stage, unit, word));
    if (unit === SMALLEST_UNIT || panels.every((panel) => panel.width <= room)) return stack(panels, planned);
  }
}

function stack(panels, planned) {
  const width = Math.max(...panels.map((panel) => panel.width));
  let height = 0;
  const stacked = panels.map((panel) => {
    const aside = (width - panel.width) / 2;
    const columns = panel.columns.map((column) => ({ ...column, x: column.x + aside }));
    const moved = { ...panel, columns, groupsAt: panel.groupsAt.map((x) => x + aside), y: height };
    height += panel.height + 8;
    return moved;
  });
  return { ...planned, panels: stacked, width, height };
}

// The columns of the stages `from` to `to`: channels, filters, channels, and so on.
function placePanel(planned, from, to, unit, word) {
  const { stages, sheets, blocks, layout, heights } = planned;
  const columns = [{ kind: "sheets", of: from, size: sheets[from] }];
  for (let stage = from; stage <= to; stage++) {
    columns.push(
      { kind: "blocks", of: stage, size: blocks[stage] },
      { kind: "sheets", of: stage + 1, size: sheets[stage + 1] },
    );
  }
  const numbers = (column) => 6 + longest(shownOf(layout.channels[column]).map((item) => `${item.index}`));
  for (const column of columns) {
    column.heading = heading(column, stages, word);
    column.caption = column.kind === "blocks" ? caption(stages[column.of], word) : [];
    column.half = (across(column.size) * unit) / 2;
  }
  columns[0].x = 0;
  for (let i = 1; i < columns.length; i++) {
    const [before, here] = [columns[i - 1], columns[i]];
    const arrows = i % 2 ? (before.of > from ? numbers(before.of) + 1.1 * unit : 1.25 * unit) : 0.75 * unit;
    const words = (longest(before.heading) + longest(here.heading)) / 2 + 10;
    const below =
      i > 2 && i % 2 ? columns[i - 2].x + (longest(columns[i - 2].caption) + longest(here.caption)) / 2 + 12 : 0;
    here.x = Math.max(before.x + Math.max(before.half + here.half + arrows, words), below);
  }
  const groupsRoom = (stage) =>
    stages[stage].spec.groups > 1
      ? 10 + longest(layout.fans[stage].map((fan) => word("figure.group", { group: fan.group })))
      : 0;
  const leftNumbers = columns[0].half + numbers(from);
  const left = leftNumbers + (from === 0 ? groupsRoom(0) : 0);
  const right = columns.at(-1).x + columns.at(-1).half + numbers(to + 1) + (to > 0 ? groupsRoom(to) : 0);
  const ends = columns.flatMap(({ x, heading, caption }) => [heading, caption].map((words) => [x, longest(words) / 2]));
  const leftmost = Math.min(-left, ...ends.map(([x, half]) => x - half)) - 4;
  const rightmost = Math.max(right, ...ends.map(([x, half]) => x + half)) + 4;
  const items = layout.channels.slice(from, to + 2).flat();
  const tallest = Math.max(...heights.slice(from, to + 1), sheets[from].depth * UP) / 2;
  const above = (Math.max(...items.map((item) => item.y)) + tallest) * unit;
  const depth = (Math.max(...items.map((item) => -item.y)) + tallest) * unit;
  const headingLines = Math.max(...columns.map(({ heading }) => heading.length));
  const top = 14 + LINE * headingLines;
  for (const column of columns) column.x -= leftmost;
  return {
    from,
    to,
    unit,
    columns,
    headingLines,
    middle: top + above,
    bottom: top + above + depth,
    groupsAt: [-left - leftmost, right - leftmost],
    width: rightmost - leftmost,
    height: top + above + depth + LINE * 2.6,
  };
}

// A column's heading: its name and shape; a long shape takes two lines.
function heading(column, stages, word) {
  if (column.kind === "sheets") {
    const key = column.of === 0 ? "input" : column.of === stages.length ? "output" : "between";
    const channels = column.of === 0 ? stages[0].spec.in : stages[column.of - 1].spec.out;
    const size = column.of === 0 ? stages[0].input : stages[column.of - 1].output;
    return [word(`figure.${key}`), times([channels, ...size])];
  }
  const { spec, name } = stages[column.of];
  const shape = times([...spec.kernel, spec.in / spec.groups]);
  const of = word("figure.of", { filters: spec.out, shape });
  const broken = of.length > 14 ? of.split(/ (?=\S+$)/) : [of];
  return [word(stages.length === 1 ? "figure.filters" : `figure.${name}`), ...broken];
}

function caption(stage, word) {
  return [
    `${dots(...factorsOf(stage.spec))} = ${word("count.weights", { weights: count(stage.weights) })}`,
    word("count.macs", { macs: count(stage.macs) }),
  ];
}

const panelOf = (scene, stage) => scene.panels.find((panel) => panel.from <= stage && stage <= panel.to);
const columnOf = (panel, kind, of) => panel.columns.find((column) => column.kind === kind && column.of === of);
const rowOf = (panel, y) => panel.y + panel.middle - y * panel.unit;
const points = (corners) => corners.map(([x, y]) => `${round(x)},${round(y)}`).join(" ");
const round = (value) => Math.round(value * 100) / 100;
