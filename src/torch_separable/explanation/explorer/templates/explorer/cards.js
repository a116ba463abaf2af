// The kinds of layer as cards and as one figure, and the buttons for the number of groups.

const soft = (...children) => element("span", { class: "soft" }, ...children);

function bar(label, value, word) {
  return element(
    "span",
    { class: "bar" },
    element("span", { class: "bar-label" }, word(label)),
    element(
      "span",
      { class: "track" },
      element("span", { class: "remaining", style: `width:${Math.min(100, 100 * value)}%` }),
    ),
    element("span", { class: "bar-value" }, share(value)),
  );
}

function detailOf(state, kind, word) {
  if (kind === "standard") return word("kind.one_group");
  if (kind.endsWith("_first"))
    return state.depth_multiplier > 1
      ? word("kind.multiplier", { rank: state.depth_multiplier })
      : word("kind.separable");
  return word("kind.groups", { groups: kind === "grouped" ? state.groups : state.in });
}

const costsOf = (stages) => ({
  weights: total(stages, "weights"),
  parameters: total(stages, "parameters"),
  macs: total(stages, "macs"),
});

function cards(state, word) {
  const dense = costsOf(stagesOf(state, "standard"));
  return KINDS.map((kind) => card(state, kind, dense, word));
}

function card(state, kind, dense, word) {
  const chosen = kind === state.show;
  const radio = {
    type: "button",
    role: "radio",
    class: "card",
    id: `card-${kind}`,
    "data-value": kind,
    "aria-checked": `${chosen}`,
    tabindex: chosen ? "0" : "-1",
  };
  const name = word(`kind.${kind}`);
  const reason = whyNot(state, kind);
  if (reason) {
    const label = word("card.unavailable", { kind: name, reason: word(...reason) });
    return element(
      "button",
      { ...radio, "aria-disabled": "true", "aria-label": label },
      element("b", {}, name),
      soft(word(...reason)),
    );
  }
  const stages = stagesOf(state, kind);
  const { weights, parameters, macs } = costsOf(stages);
  const detail = detailOf(state, kind, word);
  const numbers = { weights: count(weights), parameters: count(parameters), macs: count(macs) };
  return element(
    "button",
    { ...radio, "aria-label": word("card.label", { kind: name, detail, ...numbers, share: share(macs / dense.macs) }) },
    element("b", {}, name),
    soft(detail),
    drawMiniature(stages, { class: "miniature" }),
    element(
      "span",
      { class: numbers.weights.length > 9 ? "number long" : "number" },
      numbers.weights,
      " ",
      element("small", {}, word("factor.weights")),
    ),
    soft(word("count.parameters", numbers)),
    element("span", { class: "macs" }, word("count.macs", numbers)),
    bar("bar.weights", weights / dense.weights, word),
    bar("bar.macs", macs / dense.macs, word),
  );
}

function chips(state, word) {
  const chosen = groupsOf(state);
  return groupsOffered(state).map((groups) => {
    const reason = whyNotGroups(state, groups);
    const attributes = {
      type: "button",
      role: "radio",
      class: "chip",
      id: `groups-${groups}`,
      "data-value": groups,
      "aria-checked": `${groups === chosen}`,
      "aria-disabled": reason && "true",
      title: reason && word(...reason),
      tabindex: groups === (chosen ?? 1) ? "0" : "-1",
    };
    return element("button", attributes, `${groups}`);
  });
}

// The cards as one figure.
function drawComparison(state, title, word) {
  const kinds = KINDS.filter((kind) => !whyNot(state, kind));
  const dense = costsOf(stagesOf(state, "standard"));
  const [width, height, gap] = [MINIATURE.width, 300, 28];
  const drawn = kinds.map((kind, i) => {
    const stages = stagesOf(state, kind);
    const { weights, parameters, macs } = costsOf(stages);
    const line = (y, words, attributes) => text(0, y, words, { "text-anchor": "start", ...attributes });
    const barAt = (y, label, value) => [
      line(y, word(label), { "font-size": 11 }),
      element("rect", { x: 52, y: y - 5, width: 70, height: 10, fill: "var(--track)" }),
      element("rect", { x: 52, y: y - 5, width: round(Math.min(1, value) * 70), height: 10, fill: "var(--accent)" }),
      line(y, share(value), { x: 128, "font-size": 11 }),
    ];
    return element(
      "g",
      { transform: `translate(${16 + i * (width + gap)} 52)` },
      line(0, word(`kind.${kind}`), { "font-weight": 600 }),
      line(18, detailOf(state, kind, word), { "font-size": 12 }),
      drawMiniature(stages, { x: 0, y: 34, width, height: MINIATURE.height }),
      line(162, word("count.weights", { weights: count(weights) }), { "font-size": 18, "font-weight": 600 }),
      line(184, word("count.parameters", { parameters: count(parameters) }), { "font-size": 12 }),
      line(202, word("count.macs", { macs: count(macs) }), { "font-size": 12 }),
      barAt(222, "bar.weights", weights / dense.weights),
      barAt(238, "bar.macs", macs / dense.macs),
    );
  });
  const size = { width: 32 + kinds.length * (width + gap) - gap, height };
  const heading = text(16, 20, title, { "text-anchor": "start", "font-weight": 600, "font-size": 15 });
  return element(
    "svg",
    { xmlns: SVG, viewBox: `0 0 ${size.width} ${size.height}`, ...size, role: "img", "font-family": "var(--sans)" },
    element("title", {}, title),
    heading,
    drawn,
  );
}
