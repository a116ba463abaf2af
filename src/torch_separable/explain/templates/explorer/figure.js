// The figure: channels as sheets, filters as blocks of their depth, groups by colour, as explain/figure.py draws it.
// Words keep their size; everything else is scaled to the room there is, and where two stages do not fit side by side
// they stand one above the other.

const RIGHT = 0.5; // the slant: how far one unit of depth into the page goes to the right
const UP = 0.4; // and up
const SLAB = 0.16;
const MOST_CELLS = 8;
const LARGEST_UNIT = 46;
const SMALLEST_UNIT = 18;
const SIDE_BY_SIDE_UNIT = 31;
const FONT = 13;
const LINE = 18;

const paint = (colour, face) => `var(--${colour === null ? "none" : `group-${colour}`}-${face})`;
const INK = "var(--ink)";

// An estimate from above: letters of the widest common system fonts, and the square characters of Chinese.
const wordsWidth = (text, font = FONT) => [...text].reduce((sum, letter) => sum + (letter > "⺀" ? 1 : 0.63), 0) * font;
const longest = (lines) => Math.max(0, ...lines.map((line) => wordsWidth(line)));

// Depth and width for so many rows and columns, true to scale unless one would become invisible.
function extentOf(cells, cell, most, least = 0.22) {
  const scale = Math.min(cell, most / Math.max(...cells));
  return { depth: Math.max(cells[0] * scale, least), width: Math.max(cells[1] * scale, least) };
}

const across = ({ depth, width }) => width + depth * RIGHT;

// What is drawn, in units.
function plan(stages) {
  const sizes = [stages[0].input, ...stages.map((stage) => stage.output)];
  const sheets = sizes.map((size) => extentOf(size, 0.36, 1.25));
  const blocks = stages.map((stage) => extentOf(stage.spec.kernel, 0.26, 0.9));
  const shown = stages.map(({ spec }) => slabsOf(spec.in / spec.groups));
  const heights = stages.map((_, i) => blocks[i].depth * UP + SLAB * shown[i].length);
  const pitch = Math.max(...sheets.map(({ depth }) => depth)) * UP + 0.3;
  return { stages, sizes, sheets, blocks, shown, heights, layout: arrange(stages, pitch, heights.map((height) => height + 0.3)) };
}

// Everything's place in pixels, in at most `room` of them across.
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
  let height = 0;
  for (const panel of panels) {
    panel.y = height;
    height += panel.height + 8;
  }
  return { ...planned, panels, width: Math.max(...panels.map((panel) => panel.width)), height };
}

// The columns of the stages `from` to `to`: channels, filters, channels, and so on.
function placePanel(planned, from, to, unit, word) {
  const { stages, sheets, blocks, layout, heights } = planned;
  const columns = [{ kind: "sheets", of: from, size: sheets[from] }];
  for (let stage = from; stage <= to; stage++) {
    columns.push({ kind: "blocks", of: stage, size: blocks[stage] }, { kind: "sheets", of: stage + 1, size: sheets[stage + 1] });
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
    const below = i > 2 && i % 2 ? columns[i - 2].x + (longest(columns[i - 2].caption) + longest(here.caption)) / 2 + 12 : 0;
    here.x = Math.max(before.x + Math.max(before.half + here.half + arrows, words), below);
  }
  const groupsRoom = (stage) =>
    stages[stage].spec.groups > 1 ? 10 + longest(layout.fans[stage].map((fan) => word("figure.group", { group: fan.group }))) : 0;
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

// What stands above a column: what it is, and its shape; a long shape on two lines.
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
  const broken = of.length > 14 ? of.split(/(?<=\S) /) : [of];
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

function text(x, y, words, attributes = {}) {
  const middle = { x: round(x), y: round(y), "text-anchor": "middle", "dominant-baseline": "central", fill: INK };
  return element("text", { ...middle, "font-size": FONT, ...attributes }, words);
}

// A cuboid from its lower front left corner, with a grid if its top shows; a gap stands for slabs that are left out.
function box([x, y], { depth, width }, height, colour, { cells = null, gap = false } = {}) {
  const [right, up] = [depth * RIGHT, depth * UP];
  const z = y - height;
  const face = (name, corners) =>
    element("polygon", { points: points(corners), fill: gap ? "var(--paper)" : paint(colour, name), stroke: "var(--edge)", "stroke-width": 0.75, "stroke-linejoin": "round" });
  const rule = (from, to) =>
    element("path", { d: `M${points([from])}L${points([to])}`, stroke: "var(--edge)", "stroke-width": 0.5 });
  const lines = [];
  if (cells && Math.max(...cells) <= MOST_CELLS) {
    for (let row = 1; row < cells[0]; row++) {
      const [at, level] = [x + (row / cells[0]) * right, z - (row / cells[0]) * up];
      lines.push(rule([at, level], [at + width, level]));
    }
    for (let column = 1; column < cells[1]; column++) {
      const at = x + (width * column) / cells[1];
      lines.push(rule([at, z], [at + right, z - up]));
    }
  }
  return [
    face("front", [[x, y], [x + width, y], [x + width, z], [x, z]]),
    face("side", [[x + width, y], [x + width + right, y - up], [x + width + right, z - up], [x + width, z]]),
    face("top", [[x, z], [x + width, z], [x + width + right, z - up], [x + right, z - up]]),
    lines,
  ];
}

const scaled = ({ depth, width }, unit) => ({ depth: depth * unit, width: width * unit });

function sheetCorner(panel, column, item) {
  return [column.x - column.half, rowOf(panel, item.y) + (column.size.depth * UP * panel.unit) / 2];
}

function drawSheet(scene, panel, column, item) {
  return box(sheetCorner(panel, column, item), scaled(column.size, panel.unit), 0.05 * panel.unit, item.colour, { cells: scene.sizes[column.of] });
}

// The corner of each slab of a filter's block, from its top down.
function slabCorners(scene, panel, column, item) {
  const slabs = scene.shown[column.of];
  const height = (slabs.length * SLAB + column.size.depth * UP) * panel.unit;
  const bottom = rowOf(panel, item.y) + height / 2;
  return slabs.map((slab, i) => ({ slab, corner: [column.x - column.half, bottom - (slabs.length - 1 - i) * SLAB * panel.unit] }));
}

function drawBlock(scene, panel, column, item) {
  const { spec } = scene.stages[column.of];
  const size = scaled(column.size, panel.unit);
  const height = SLAB * panel.unit;
  const channels = new Map(scene.layout.channels[column.of].map(({ index, colour }) => [index, colour]));
  return slabCorners(scene, panel, column, item)
    .reverse()
    .map(({ slab, corner }) => {
      if (slab === null) {
        const dot = (i) => element("circle", { cx: round(corner[0] + size.width / 2 + i * 5), cy: round(corner[1] - height / 2), r: 1.1, fill: INK });
        return [box(corner, size, height, null, { gap: true }), [-1, 0, 1].map(dot)];
      }
      // A filter of a group has the group's colour; one that mixes groups has a slab of each.
      const mixes = item.colour === null || spec.groups === 1;
      return box(corner, size, height, mixes ? channels.get(slab) ?? null : item.colour, { cells: slab === 0 ? spec.kernel : null });
    });
}

function arrow([x, y], [toX, toY], colour, attributes = {}) {
  const length = Math.hypot(toX - x, toY - y);
  const [dx, dy] = [(toX - x) / length, (toY - y) / length];
  const [baseX, baseY] = [toX - dx * 7, toY - dy * 7];
  const head = [[toX, toY], [baseX - dy * 3, baseY + dx * 3], [baseX + dy * 3, baseY - dx * 3]];
  return [
    element("path", { d: `M${points([[x, y]])}L${points([[baseX, baseY]])}`, stroke: paint(colour, "line"), "stroke-width": 1.25, fill: "none", ...attributes }),
    element("polygon", { points: points(head), fill: paint(colour, "line") }),
  ];
}

const ellipsis = (_, panel, column, item) =>
  [-1, 0, 1].map((i) => element("circle", { cx: round(column.x), cy: round(rowOf(panel, item.y) + i * 5), r: 1.6, fill: INK }));

// From the channels that a group sees to each of its filters.
function drawFan(scene, panel, stage, fan) {
  const number = longest(shownOf(scene.layout.channels[stage]).map(({ index }) => `${index}`));
  const [sheets, blocks] = [columnOf(panel, "sheets", stage), columnOf(panel, "blocks", stage)];
  const half = (sheets.size.depth * UP * panel.unit) / 2;
  const [high, low] = [rowOf(panel, fan.inputs[0]), rowOf(panel, fan.inputs[1])];
  let x = sheets.x + sheets.half + (stage === panel.from ? 6 : 6 + number);
  const drawn = [];
  if (low > high) {
    const [from, to] = [high - half, low + half];
    drawn.push(element("path", { d: `M${points([[x, from]])}H${round(x + 7)}V${round(to)}H${round(x)}`, stroke: paint(fan.colour, "line"), "stroke-width": 1.5, fill: "none" }));
    x += 7;
  }
  for (const y of fan.filters) drawn.push(arrow([x, (high + low) / 2], [blocks.x - blocks.half - 4, rowOf(panel, y)], fan.colour));
  return drawn;
}

function drawPanel(scene, panel) {
  const { layout } = scene;
  const drawn = [];
  for (const column of panel.columns) {
    if (column.kind === "sheets") {
      drawn.push(layout.channels[column.of].map((item) => (item.index === null ? ellipsis : drawSheet)(scene, panel, column, item)));
      continue;
    }
    drawn.push(layout.fans[column.of].map((fan) => drawFan(scene, panel, column.of, fan)));
    drawn.push(layout.filters[column.of].map((item) => (item.index === null ? ellipsis(scene, panel, column, item) : [drawBlock(scene, panel, column, item), arrowOut(panel, column, item)])));
  }
  return drawn;
}

function arrowOut(panel, column, item, attributes) {
  const made = columnOf(panel, "sheets", column.of + 1);
  const y = rowOf(panel, item.y);
  return arrow([column.x + column.half + 4, y], [made.x - made.half - 4, y], item.colour, attributes);
}

// Everything that is written: above, below and beside the columns.
function wordsOf({ layout, stages }, panel, word) {
  const written = [];
  for (const column of panel.columns) {
    const top = panel.y + 10 + (panel.headingLines - column.heading.length) * LINE;
    column.heading.forEach((words, i) => written.push(text(column.x, top + i * LINE, words, i ? {} : { "font-weight": 600 })));
    column.caption.forEach((words, i) => written.push(text(column.x, panel.y + panel.bottom + 18 + i * LINE, words)));
    if (column.kind === "blocks") continue;
    const before = column.of === panel.from;
    const x = before ? column.x - column.half - 5 : column.x + column.half + 4;
    for (const { index, y } of shownOf(layout.channels[column.of])) {
      written.push(text(x, rowOf(panel, y), `${index}`, { "text-anchor": before ? "end" : "start" }));
    }
  }
  for (let stage = panel.from; stage <= panel.to; stage++) {
    if (stages[stage].spec.groups === 1) continue;
    const [x, anchor] = stage === 0 ? [panel.groupsAt[0], "start"] : [panel.groupsAt[1], "end"];
    for (const { group, inputs, filters } of layout.fans[stage]) {
      const y = stage === 0 ? mean(inputs) : mean(filters);
      written.push(text(x, rowOf(panel, y), word("figure.group", { group }), { "text-anchor": anchor }));
    }
  }
  return written;
}

const mean = (values) => values.reduce((one, other) => one + other) / values.length;

// A rectangle of cells [top, left, bottom, right] on a sheet; row 0 is the far one.
function cellsOn(scene, panel, column, item, [top, left, bottom, right]) {
  const [x, y] = sheetCorner(panel, column, item);
  const { depth, width } = scaled(column.size, panel.unit);
  const [rows, columns] = scene.sizes[column.of];
  const corner = (row, at) => {
    const back = depth * (1 - row / rows);
    return [x + (width * at) / columns + back * RIGHT, y - 0.05 * panel.unit - back * UP];
  };
  return points([corner(bottom, left), corner(bottom, right), corner(top, right), corner(top, left)]);
}

// The parts of the figure that one step of the walk touches, drawn again over the rest, with its marks.
function drawStep(scene, step) {
  const panel = panelOf(scene, step.stage);
  const [sheets, blocks, made] = [
    columnOf(panel, "sheets", step.stage),
    columnOf(panel, "blocks", step.stage),
    columnOf(panel, "sheets", step.stage + 1),
  ];
  const inside = ([first, last], item) => item.index !== null && first <= item.index && item.index <= last;
  const drawn = [];
  const mark = (corners, attributes) => element("polygon", { points: corners, "stroke-linejoin": "round", ...attributes });
  for (const item of scene.layout.channels[step.stage]) {
    if (!inside(step.channels, item)) continue;
    drawn.push(drawSheet(scene, panel, sheets, item));
    drawn.push(mark(cellsOn(scene, panel, sheets, item, step.window), { fill: "none", stroke: INK, "stroke-width": 2, "stroke-dasharray": step.padded ? "4 2" : null }));
    if (step.tap) {
      const [row, column] = step.at;
      drawn.push(mark(cellsOn(scene, panel, sheets, item, [row, column, row + 1, column + 1]), { fill: INK, stroke: "var(--paper)", "stroke-width": 1 }));
    }
  }
  for (const item of scene.layout.filters[step.stage]) {
    if (!inside(step.filters, item)) continue;
    drawn.push(drawBlock(scene, panel, blocks, item));
    const size = scaled(blocks.size, panel.unit);
    const [across, height] = [size.width + size.depth * RIGHT, SLAB * panel.unit];
    for (const { slab, corner } of slabCorners(scene, panel, blocks, item)) {
      if (step.kind === "filters" || !inSlab(step, slab)) continue;
      const [x, y] = corner;
      drawn.push(mark(points([[x, y], [x + size.width, y], [x + across, y - size.depth * UP], [x + across, y - size.depth * UP - height], [x + size.width, y - height], [x, y - height]]), { fill: "none", stroke: INK, "stroke-width": 2 }));
    }
    drawn.push(arrowOut(panel, blocks, item, { "stroke-width": 2 }));
    const output = scene.layout.channels[step.stage + 1].find(({ index }) => index === item.index);
    drawn.push(drawSheet(scene, panel, made, output));
    const [row, column] = step.pixel;
    drawn.push(mark(cellsOn(scene, panel, made, output, [row, column, row + 1, column + 1]), { fill: step.complete ? INK : "none", stroke: INK, "stroke-width": 2 }));
  }
  return drawn;
}

const inSlab = (step, slab) => slab !== null && step.slabs[0] <= slab && slab <= step.slabs[1];

// Pixels that are computed already.
function drawDone(scene, done) {
  return done.flatMap(({ stage, filters, pixel }) => {
    const panel = panelOf(scene, stage);
    const column = columnOf(panel, "sheets", stage + 1);
    const [row, at] = pixel;
    return scene.layout.channels[stage + 1]
      .filter((item) => item.index !== null && item.index < filters)
      .map((item) => element("polygon", { points: cellsOn(scene, panel, column, item, [row, at, row + 1, at + 1]), fill: INK }));
  });
}

// The whole figure; `step` may be null.
function drawFigure(scene, { word, title, description, step = null, done = [], id = "figure" }) {
  return element(
    "svg",
    {
      xmlns: SVG,
      viewBox: `0 0 ${round(scene.width)} ${round(scene.height)}`,
      width: round(scene.width),
      height: round(scene.height),
      role: "img",
      "aria-labelledby": `${id}-title ${id}-description`,
      "font-family": "var(--sans)",
    },
    element("title", { id: `${id}-title` }, title),
    element("desc", { id: `${id}-description` }, description),
    element("g", { opacity: step ? 0.3 : null }, scene.panels.map((panel) => drawPanel(scene, panel))),
    scene.panels.map((panel) => wordsOf(scene, panel, word)),
    drawDone(scene, done),
    step ? drawStep(scene, step) : [],
  );
}
