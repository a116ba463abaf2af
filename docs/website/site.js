// Tables that are wider than the page scroll; the keyboard reaches them too. The theme wraps them when it starts.
addEventListener("load", () => {
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap")) wide.tabIndex = 0;
});
