"use strict";
(() => {
  const element = (id) => document.getElementById(id);

  // The theme: as the system has it, or as it is chosen here.

  const theme = element("theme");
  const themes = ["system", "light", "dark"];
  let chosen = 0;
  theme.hidden = false;
  theme.addEventListener("click", () => {
    chosen = (chosen + 1) % themes.length;
    if (chosen) document.documentElement.dataset.theme = themes[chosen];
    else delete document.documentElement.dataset.theme;
    theme.querySelector("span").textContent = themes[chosen];
  });

  // The table of layers: sorted by any column, searched, and all, converted or kept ones.

  const table = element("layers-table");
  if (table) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const search = element("layers-search");
    const show = element("layers-show");
    const by = element("layers-sort");
    let column = 0;
    let up = true;

    const compare = (one, other) => {
      const [a, b] = [one, other].map((row) => row.cells[column].dataset.value);
      return heads[column].dataset.kind === "number"
        ? Number(a) - Number(b)
        : a.localeCompare(b, undefined, { numeric: true });
    };
    const sort = (to, ascending) => {
      [column, up] = [to, ascending];
      by.value = String(column);
      heads.forEach((head, i) => {
        if (i === column) head.setAttribute("aria-sort", up ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      // Rows that compare equal keep the network's order.
      body.append(...[...rows].sort((one, other) => (up ? 1 : -1) * compare(one, other)));
      update();
    };
    const firstUp = (i) => heads[i].dataset.kind === "text" || heads[i].dataset.first === "up";

    const nothing = document.createElement("tr");
    nothing.className = "none";
    nothing.innerHTML = '<td></td>';
    nothing.firstChild.colSpan = heads.length;
    nothing.firstChild.textContent = "No layer matches.";
    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        const hit = words.every((word) => text.includes(word)) && (!show.value || row.dataset.kept === show.value);
        row.hidden = !hit;
        if (hit) shown += 1;
      }
      if (shown || !rows.length) nothing.remove();
      else body.append(nothing);
      const sorted = column === 0 && up ? "in the network's order" : `by ${heads[column].dataset.name}, ${up ? "ascending" : "descending"}`;
      element("layers-count").textContent = `${shown} of ${rows.length} layers, ${sorted}`;
    };

    heads.forEach((head, i) => {
      head.dataset.name = head.textContent;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => sort(i, i === column ? !up : firstUp(i)));
      head.replaceChildren(button);
      by.add(new Option(i ? head.dataset.name : "the network's order", String(i)));
    });
    search.addEventListener("input", update);
    show.addEventListener("change", update);
    by.addEventListener("change", () => sort(Number(by.value), firstUp(Number(by.value))));
    element("layers-turn").addEventListener("click", () => sort(column, !up));
    element("layers-controls").hidden = false;
    update();
  }

  // Copying a command.

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = element(button.dataset.copy);
      let done = true;
      try {
        await navigator.clipboard.writeText(text.textContent);
      } catch {
        getSelection().selectAllChildren(text);
        done = document.execCommand("copy");
      }
      element("copied").textContent = done ? "Copied." : "Selected: copy it with the keyboard.";
    });
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));

  // Charts.

  const axis = {
    labelColor: "var(--soft)", titleColor: "var(--soft)", tickColor: "var(--rule)", domainColor: "var(--rule)",
    gridColor: "var(--rule)", titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12,
  };
  const config = {
    aria: false, background: null, font: getComputedStyle(document.body).fontFamily, view: { stroke: null }, axis,
    axisY: { domain: false, ticks: false, labelPadding: 8 },
    legend: { labelColor: "var(--ink)", labelFontSize: 12, symbolType: "circle", symbolOpacity: 1, labelLimit: 0, rowPadding: 4, columnPadding: 16 },
    text: { color: "var(--ink)" },
  };
  // Without evaluating text as code, which the page's policy forbids.
  const options = { renderer: "svg", actions: false, ast: true, config, tooltip: { disableDefaultStyle: true } };
  const drawn = Object.entries(JSON.parse(element("specs").textContent)).map(async ([name, spec]) => {
    const inner = document.createElement("div"); // Vega puts its own words on it; those of the page say more
    inner.setAttribute("aria-hidden", "true");
    element(`chart-${name}`).append(inner);
    const { view } = await vegaEmbed(inner, spec, options);
    // How many columns a legend has depends on the width, and its height on them: laid out again once that is known.
    const settle = () => view.resize().runAsync();
    await settle();
    let waiting;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(settle, 100);
    });
    if (name === "layers") {
      const metric = element("metric");
      metric.hidden = false;
      metric.addEventListener("change", (event) => view.signal("metric", event.target.value).runAsync());
    }
  });
  Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = "yes"; });
})();
