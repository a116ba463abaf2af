// Save figures as files, with the light theme's colours inlined.

const PICTURE_SCALE = 2;

// The style sheet's custom properties in the light theme.
function colourReader(light) {
  const style = getComputedStyle(light);
  return (text) =>
    text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim().replaceAll('"', "'"));
}

// The tree with its colours inlined, on a background.
function forFile(tree, colours) {
  const filled = (node) => {
    if (typeof node !== "object") return node;
    const attributes = Object.entries(node.attributes).map(([name, value]) => [
      name,
      typeof value === "string" ? colours(value) : value,
    ]);
    return { ...node, attributes: Object.fromEntries(attributes), children: node.children.map(filled) };
  };
  const page = element("rect", { width: "100%", height: "100%", fill: colours("var(--paper)") });
  const whole = filled(tree);
  return { ...whole, children: [page, ...whole.children] };
}

const svgBlob = (tree) =>
  new Blob(['<?xml version="1.0" encoding="UTF-8"?>\n', markup(tree)], { type: "image/svg+xml" });

async function pngBlob(tree) {
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(markup(tree))}`;
  await picture.decode();
  const canvas = document.createElement("canvas");
  canvas.width = tree.attributes.width * PICTURE_SCALE;
  canvas.height = tree.attributes.height * PICTURE_SCALE;
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The figure with its title above and its totals below.
function drawForFile(stages, room, { word, title, description, step, done, dense }) {
  const scene = place(stages, room, word);
  const figure = drawFigure(scene, { word, title, description, step, done, id: "saved" });
  const totals = totalsOf(stages, dense, word);
  const width = Math.max(scene.width, wordsWidth(title, 16) + 32, longest(totals) + 32);
  const height = scene.height + 52 + totals.length * (LINE + 2) + 10;
  const inner = {
    ...figure,
    attributes: {
      viewBox: figure.attributes.viewBox,
      width: scene.width,
      height: scene.height,
      x: round((width - scene.width) / 2),
      y: 44,
    },
  };
  return element(
    "svg",
    {
      xmlns: SVG,
      viewBox: `0 0 ${round(width)} ${round(height)}`,
      width: Math.ceil(width),
      height: Math.ceil(height),
      role: "img",
      "aria-labelledby": "saved-title saved-description",
      "font-family": "var(--sans)",
    },
    text(width / 2, 22, title, { "font-size": 16, "font-weight": 600 }),
    inner,
    totals.map((words, i) => text(width / 2, 58 + scene.height + i * (LINE + 2), words, { "font-weight": 600 })),
  );
}

// The totals at the bottom: the sum of both stages, and its share of the dense layer.
function totalsOf(stages, dense, word) {
  const { groups } = stages[0].spec;
  if (stages.length === 1) return groups > 1 ? [word("figure.share_groups", { groups })] : [];
  const sum = (what) => stages.map((stage) => count(stage[what])).join(" + ");
  const [weights, macs] = [total(stages, "weights"), total(stages, "macs")];
  return [
    `${sum("weights")} = ${word("count.weights", { weights: count(weights) })}`,
    `${sum("macs")} = ${word("figure.share_macs", { macs: count(macs), share: share(macs / dense) })}`,
  ];
}
