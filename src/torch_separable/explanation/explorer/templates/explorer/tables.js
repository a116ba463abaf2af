// Tables: the derivation, the layers of the same channels, and the figure as text.

function table(head, rows, numeric = []) {
  const cellOf = (tag, content, column) =>
    element(tag, { class: numeric.includes(column) ? "n" : null, scope: tag === "th" ? "col" : null }, content);
  return element(
    "table",
    {},
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        head.map((content, column) => cellOf("th", content, column)),
      ),
    ),
    element(
      "tbody",
      {},
      rows.map(({ cells, ...attributes }) =>
        element(
          "tr",
          attributes,
          cells.map((content, column) => cellOf("td", content, column)),
        ),
      ),
    ),
  );
}

const heads = (word, ...names) => names.map((name) => word(`table.${name}`));

function workingTable(stages, word) {
  const rows = workingOf(stages, word).map(({ part, title, symbols, numbers, result }) => ({
    cells: [word(`part.${part}`), title, symbols, numbers, result],
  }));
  return table(heads(word, "part", "what", "formula", "numbers", "result"), rows, [4]);
}

// The alternatives; of many numbers of groups the first, the last and the chosen one, null for gaps.
function shownAlternatives(alternatives) {
  const single = alternatives.filter(({ stages }) => stages.length === 1);
  const kept = single.map(({ chosen }, i) => chosen || i < 6 || i >= single.length - 2);
  const shown = single.flatMap((each, i) => (kept[i] ? [each] : i === 0 || kept[i - 1] ? [null] : []));
  return [...shown, ...alternatives.filter(({ stages }) => stages.length > 1)];
}

function choicesTable(state, word) {
  const dense = total(stagesOf(state, "standard"), "macs");
  const rows = shownAlternatives(alternativesOf(state, state.show)).map((each) => {
    if (!each) return { cells: ["…", "", "", "", ""] };
    const costs = costsOf(each.stages);
    const choose = {
      type: "button",
      class: "choose",
      "data-kind": each.kind,
      "data-groups": each.groups,
      "data-rank": each.rank,
      id: `choose-${each.kind}-${each.groups}-${each.rank}`,
    };
    const value = costs.macs / dense;
    const drawn = element(
      "span",
      { class: "bar" },
      element(
        "span",
        { class: "track" },
        element("span", { class: "remaining", style: `width:${Math.min(100, 100 * value)}%` }),
      ),
      element("span", { class: "bar-value" }, share(value)),
    );
    return {
      class: each.chosen ? "chosen" : null,
      "aria-current": each.chosen ? "true" : null,
      cells: [
        element("button", choose, nameOf(each, word)),
        count(costs.weights),
        count(costs.parameters),
        count(costs.macs),
        drawn,
      ],
    };
  });
  return table(heads(word, "layer", "weights", "parameters", "macs", "share"), rows, [1, 2, 3]);
}

const span = ([first, last]) => (first === last ? `${first}` : `${first}–${last}`);

function linksTable(stages, word) {
  return stages.map((stage) => {
    const rows = elide(stage.spec.groups, 6).map((group) => {
      if (group === null) return { cells: ["…", "…", "…", "…"] };
      const { inputs, outputs } = linkOf(stage.spec, group);
      return { cells: [`${group}`, span(inputs), span(outputs), span(outputs)] };
    });
    const name = stages.length > 1 ? element("h3", {}, word(`part.${stage.name}`)) : null;
    return [name, table(heads(word, "group", "sees", "filters", "makes"), rows)];
  });
}

// The figure as sentences, for its accessible description.
function figureWords(stages, word) {
  const sentences = stages.flatMap((stage, i) => {
    const name = word(`part.${stage.name}`);
    const what = word(i ? "figure.between" : "figure.input");
    const made = word(i === stages.length - 1 ? "figure.output" : "figure.between");
    const { groups } = stage.spec;
    const shown = Array.from({ length: Math.min(groups, 4) }, (_, group) => {
      const { inputs, outputs } = linkOf(stage.spec, group);
      return word("figure.link", { stage: name, group, filters: span(outputs), inputs: span(inputs), what, made });
    });
    return groups > 4 ? [...shown, word("figure.more", { stage: name, groups })] : shown;
  });
  return sentences.join(" ");
}
