// A layer as an icon: a mark for each channel, and a line from each channel to the filters that read it.

const MINIATURE = { width: 168, height: 104, mark: 6 };

function drawMiniature(stages, attributes = {}) {
  const { width, height, mark } = MINIATURE;
  const layout = arrange(
    stages,
    1,
    stages.map(() => 1),
  );
  const ys = layout.channels.flat().map((item) => item.y);
  const [top, bottom] = [Math.max(...ys), Math.min(...ys)];
  const pitch = Math.min(14, (height - mark - 4) / Math.max(1, top - bottom));
  const rowAt = (y) => height / 2 - (y - (top + bottom) / 2) * pitch;
  const columnAt = (column) => 8 + ((width - 16) * column) / (layout.channels.length - 1);
  const lines = stages.map((stage, i) =>
    stageLines(stage, layout, i, [columnAt(i) + mark, columnAt(i + 1) - mark], rowAt),
  );
  const marks = layout.channels.map((items, column) =>
    items.map((item) => channelMark(item, columnAt(column), rowAt(item.y), mark)),
  );
  return element("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", ...attributes }, lines, marks);
}

function stageLines(stage, layout, column, [left, right], rowAt) {
  const { inputs, groups } = { inputs: stage.spec.in / stage.spec.groups, groups: stage.spec.groups };
  const outputs = stage.spec.out / groups;
  return shownOf(layout.channels[column + 1]).flatMap((filter) =>
    shownOf(layout.channels[column])
      .filter((channel) => Math.floor(channel.index / inputs) === Math.floor(filter.index / outputs))
      .map((channel) =>
        element("path", {
          d: `M${points([[left, rowAt(channel.y)]])}L${points([[right, rowAt(filter.y)]])}`,
          stroke: paint(groups > 1 ? filter.colour : channel.colour, "line"),
          "stroke-width": 1,
          "stroke-opacity": 0.75,
        }),
      ),
  );
}

function channelMark({ index, colour }, x, y, mark) {
  if (index === null) return element("circle", { cx: x, cy: round(y), r: 1.2, fill: INK });
  const corner = { x: round(x - mark), y: round(y - mark / 2), width: 2 * mark, height: mark };
  return element("rect", { ...corner, fill: paint(colour, "front"), stroke: "var(--edge)", "stroke-width": 0.5 });
}
