// The figure: channels as sheets, filters as blocks, groups as colours, as in explanation/figure.py.

const MOST_CELLS = 8;

const paint = (colour, face) => `var(--${colour === null ? "none" : `group-${colour}`}-${face})`;
const INK = "var(--ink)";

function text(x, y, words, attributes = {}) {
  const middle = { x: round(x), y: round(y), "text-anchor": "middle", "dominant-baseline": "central", fill: INK };
  return element("text", { ...middle, "font-size": FONT, ...attributes }, words);
}

// A cuboid from its lower front left corner, with a grid on a visible top; a gap stands for omitted slabs.
function box([x, y], { depth, width }, height, colour, { cells = null, gap = false } = {}) {
  const [right, up] = [depth * RIGHT, depth * UP];
  const z = y - height;
  const face = (name, corners) =>
    element("polygon", {
      points: points(corners),
      fill: gap ? "var(--paper)" : paint(colour, name),
      stroke: "var(--edge)",
      "stroke-width": 0.75,
      "stroke-linejoin": "round",
    });
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
    face("front", [
      [x, y],
      [x + width, y],
      [x + width, z],
      [x, z],
    ]),
    face("side", [
      [x + width, y],
      [x + width + right, y - up],
      [x + width + right, z - up],
      [x + width, z],
    ]),
    face("top", [
      [x, z],
      [x + width, z],
      [x + width + right, z - up],
      [x + right, z - up],
    ]),
    lines,
  ];
}

const scaled = ({ depth, width }, unit) => ({ depth: depth * unit, width: width * unit });

function sheetCorner(panel, column, item) {
  return [column.x - column.half, rowOf(panel, item.y) + (column.size.depth * UP * panel.unit) / 2];
}

function drawSheet(scene, panel, column, item) {
  return box(sheetCorner(panel, column, item), scaled(column.size, panel.unit), 0.05 * panel.unit, item.colour, {
    cells: scene.sizes[column.of],
  });
}

// The corner of each slab of a filter's block, from its top down.
function slabCorners(scene, panel, column, item) {
  const slabs = scene.shown[column.of];
  const height = (slabs.length * SLAB + column.size.depth * UP) * panel.unit;
  const bottom = rowOf(panel, item.y) + height / 2;
  return slabs.map((slab, i) => ({
    slab,
    corner: [column.x - column.half, bottom - (slabs.length - 1 - i) * SLAB * panel.unit],
  }));
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
        const dot = (i) =>
          element("circle", {
            cx: round(corner[0] + size.width / 2 + i * 5),
            cy: round(corner[1] - height / 2),
            r: 1.1,
            fill: INK,
          });
        return [box(corner, size, height, null, { gap: true }), [-1, 0, 1].map(dot)];
      }
      // A filter within one group has its colour; a filter over all groups has a slab in each colour.
      const mixes = item.colour === null || spec.groups === 1;
      return box(corner, size, height, mixes ? (channels.get(slab) ?? null) : item.colour, {
        cells: slab === 0 ? spec.kernel : null,
      });
    });
}

function arrow([x, y], [toX, toY], colour, attributes = {}) {
  const length = Math.hypot(toX - x, toY - y);
  const [dx, dy] = [(toX - x) / length, (toY - y) / length];
  const [baseX, baseY] = [toX - dx * 7, toY - dy * 7];
  const head = [
    [toX, toY],
    [baseX - dy * 3, baseY + dx * 3],
    [baseX + dy * 3, baseY - dx * 3],
  ];
  return [
    element("path", {
      d: `M${points([[x, y]])}L${points([[baseX, baseY]])}`,
      stroke: paint(colour, "line"),
      "stroke-width": 1.25,
      fill: "none",
      ...attributes,
    }),
    element("polygon", { points: points(head), fill: paint(colour, "line") }),
  ];
}

const ellipsis = (_, panel, column, item) =>
  [-1, 0, 1].map((i) =>
    element("circle", { cx: round(column.x), cy: round(rowOf(panel, item.y) + i * 5), r: 1.6, fill: INK }),
  );

// Arrows from a group's input channels to its filters.
function drawFan(scene, panel, stage, fan) {
  const number = longest(shownOf(scene.layout.channels[stage]).map(({ index }) => `${index}`));
  const [sheets, blocks] = [columnOf(panel, "sheets", stage), columnOf(panel, "blocks", stage)];
  const half = (sheets.size.depth * UP * panel.unit) / 2;
  const [high, low] = [rowOf(panel, fan.inputs[0]), rowOf(panel, fan.inputs[1])];
  let x = sheets.x + sheets.half + (stage === panel.from ? 6 : 6 + number);
  const drawn = [];
  if (low > high) {
    const [from, to] = [high - half, low + half];
    drawn.push(
      element("path", {
        d: `M${points([[x, from]])}H${round(x + 7)}V${round(to)}H${round(x)}`,
        stroke: paint(fan.colour, "line"),
        "stroke-width": 1.5,
        fill: "none",
      }),
    );
    x += 7;
  }
  for (const y of fan.filters)
    drawn.push(arrow([x, (high + low) / 2], [blocks.x - blocks.half - 4, rowOf(panel, y)], fan.colour));
  return drawn;
}

function drawPanel(scene, panel) {
  const { layout } = scene;
  const drawn = [];
  for (const column of panel.columns) {
    if (column.kind === "sheets") {
      const sheets = layout.channels[column.of].map((item) =>
        (item.index === null ? ellipsis : drawSheet)(scene, panel, column, item),
      );
      drawn.push(element("g", { class: column.of === scene.stages.length ? "pixels" : null }, sheets));
      continue;
    }
    drawn.push(layout.fans[column.of].map((fan) => drawFan(scene, panel, column.of, fan)));
    drawn.push(
      layout.filters[column.of].map((item) =>
        item.index === null
          ? ellipsis(scene, panel, column, item)
          : [drawBlock(scene, panel, column, item), arrowOut(panel, column, item)],
      ),
    );
  }
  return drawn;
}

function arrowOut(panel, column, item, attributes) {
  const made = columnOf(panel, "sheets", column.of + 1);
  const y = rowOf(panel, item.y);
  return arrow([column.x + column.half + 4, y], [made.x - made.half - 4, y], item.colour, attributes);
}

// Text above, below and beside the columns.
function wordsOf({ layout, stages }, panel, word) {
  const written = [];
  for (const column of panel.columns) {
    const top = panel.y + 10 + (panel.headingLines - column.heading.length) * LINE;
    column.heading.forEach((words, i) =>
      written.push(text(column.x, top + i * LINE, words, i ? {} : { "font-weight": 600 })),
    );
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
    element(
      "g",
      { opacity: step ? 0.3 : null },
      scene.panels.map((panel) => drawPanel(scene, panel)),
    ),
    scene.panels.map((panel) => wordsOf(scene, panel, word)),
    drawDone(scene, done),
    step ? drawStep(scene, step) : [],
  );
}
