// The parts of the figure that one step uses, drawn again above the rest with marks.

// A rectangle of cells [top, left, bottom, right] on a sheet; row 0 is the farthest.
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

// All marks of one step.
function drawStep(scene, step) {
  const panel = panelOf(scene, step.stage);
  const [sheets, blocks, made] = [
    columnOf(panel, "sheets", step.stage),
    columnOf(panel, "blocks", step.stage),
    columnOf(panel, "sheets", step.stage + 1),
  ];
  const inside = ([first, last], item) => item.index !== null && first <= item.index && item.index <= last;
  const drawn = [];
  const mark = (corners, attributes) =>
    element("polygon", { points: corners, "stroke-linejoin": "round", ...attributes });
  for (const item of scene.layout.channels[step.stage]) {
    if (!inside(step.channels, item)) continue;
    drawn.push(drawSheet(scene, panel, sheets, item));
    drawn.push(
      mark(cellsOn(scene, panel, sheets, item, step.window), {
        fill: "none",
        stroke: INK,
        "stroke-width": 2,
        "stroke-dasharray": step.padded ? "4 2" : null,
      }),
    );
    if (step.tap) {
      const [row, column] = step.at;
      drawn.push(
        mark(cellsOn(scene, panel, sheets, item, [row, column, row + 1, column + 1]), {
          fill: INK,
          stroke: "var(--paper)",
          "stroke-width": 1,
        }),
      );
    }
  }
  for (const item of scene.layout.filters[step.stage]) {
    if (!inside(step.filters, item)) continue;
    drawn.push(drawBlock(scene, panel, blocks, item));
    const size = scaled(blocks.size, panel.unit);
    const [across, height] = [size.width + size.depth * RIGHT, SLAB * panel.unit];
    for (const { slab, corner } of slabCorners(scene, panel, blocks, item)) {
      if (!step.slabs || !inSlab(step, slab)) continue;
      const [x, y] = corner;
      drawn.push(
        mark(
          points([
            [x, y],
            [x + size.width, y],
            [x + across, y - size.depth * UP],
            [x + across, y - size.depth * UP - height],
            [x + size.width, y - height],
            [x, y - height],
          ]),
          { fill: "none", stroke: INK, "stroke-width": 2 },
        ),
      );
    }
    drawn.push(arrowOut(panel, blocks, item, { "stroke-width": 2 }));
    const output = scene.layout.channels[step.stage + 1].find(({ index }) => index === item.index);
    drawn.push(drawSheet(scene, panel, made, output));
    const [row, column] = step.pixel;
    drawn.push(
      mark(cellsOn(scene, panel, made, output, [row, column, row + 1, column + 1]), {
        fill: step.complete ? INK : "none",
        stroke: INK,
        "stroke-width": 2,
      }),
    );
  }
  return drawn;
}

const inSlab = (step, slab) => slab !== null && step.slabs[0] <= slab && slab <= step.slabs[1];

// Pixels that have been computed.
function drawDone(scene, done) {
  return done.flatMap(({ stage, filters, pixel }) => {
    const panel = panelOf(scene, stage);
    const column = columnOf(panel, "sheets", stage + 1);
    const [row, at] = pixel;
    return scene.layout.channels[stage + 1]
      .filter((item) => item.index !== null && item.index < filters)
      .map((item) =>
        element("polygon", { points: cellsOn(scene, panel, column, item, [row, at, row + 1, at + 1]), fill: INK }),
      );
  });
}
