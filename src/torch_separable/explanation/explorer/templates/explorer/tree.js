// Elements as plain objects, so that drawing is a pure function; they are mounted in the page or written to a file.

const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes = {}, ...children) {
  return { tag, attributes, children: children.flat(Infinity).filter((child) => child !== null && child !== "") };
}

const kept = (attributes) => Object.entries(attributes).filter(([, value]) => value !== null && value !== false);

// Text becomes text nodes, never markup.
function mount(tree, inSvg = false) {
  if (typeof tree !== "object") return document.createTextNode(String(tree));
  const svg = inSvg || tree.tag === "svg";
  const node = svg ? document.createElementNS(SVG, tree.tag) : document.createElement(tree.tag);
  for (const [name, value] of kept(tree.attributes)) node.setAttribute(name, value === true ? "" : value);
  node.append(...tree.children.map((child) => mount(child, svg)));
  return node;
}

const escaped = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.codePointAt(0)};`);

function markup(tree) {
  if (typeof tree !== "object") return escaped(tree);
  const attributes = kept(tree.attributes).map(([name, value]) => ` ${name}="${escaped(value)}"`);
  return `<${tree.tag}${attributes.join("")}>${tree.children.map(markup).join("")}</${tree.tag}>`;
}
