// The theme wraps wide tables in scrolling boxes on load. Make these reachable by keyboard.
addEventListener("load", () => {
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap")) wide.tabIndex = 0;
});
