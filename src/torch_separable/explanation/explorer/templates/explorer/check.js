// Compare the page's arithmetic with the test vectors that the library made.

function selfCheck({ specs, divisions, layers }, word) {
  const failures = [];
  const compare = (what, expected, found) => {
    const [one, other] = [JSON.stringify(expected), JSON.stringify(found)];
    if (one !== other) failures.push(`${what}: ${one} in the library, ${other} here`);
  };
  for (const { spec, input, ...expected } of specs)
    compare(JSON.stringify({ ...spec, input }), expected, specFacts(spec, input, word));
  for (const { in: inputs, out: outputs, ...expected } of divisions) {
    compare(
      `groups of ${inputs} and ${outputs}`,
      expected,
      divisionFacts({ in: inputs, out: outputs }, expected, word),
    );
  }
  for (const { state, ...expected } of layers) compare(JSON.stringify(state), expected, layerFacts(state, word));
  return { checked: specs.length + divisions.length + layers.length, failures };
}

function specFacts(spec, input, word) {
  const output = outputSize(spec, input);
  const facts = { weights: weightsOf(spec), parameters: parametersOf(spec), formula: formulaOf(spec) };
  const reason = whyNoOutput({ ...spec, input });
  return reason ? { ...facts, error: word(...reason) } : { ...facts, output, macs: weightsOf(spec) * product(output) };
}

function divisionFacts(layer, { errors }, word) {
  const reasons = Object.keys(errors).map((groups) => [groups, word(...(whyNotGroups(layer, Number(groups)) ?? [""]))]);
  return { groups: commonDivisors(layer.in, layer.out), errors: Object.fromEntries(reasons) };
}

function layerFacts(state, word) {
  const stages = stagesOf(state, state.show);
  const alternatives = alternativesOf(state, state.show);
  const dense = total(stagesOf(state, "standard"), "macs");
  return {
    title: titleOf(stages, word),
    weights: total(stages, "weights"),
    parameters: total(stages, "parameters"),
    macs: total(stages, "macs"),
    steps: workingOf(stages, word).map(({ part, title, symbols, numbers, result }) => [
      part,
      title,
      symbols,
      numbers,
      result,
    ]),
    alternatives: alternatives.map((each) => [
      nameOf(each, word),
      total(each.stages, "weights"),
      total(each.stages, "parameters"),
      total(each.stages, "macs"),
      share(total(each.stages, "macs") / dense),
      each.chosen,
    ]),
  };
}
