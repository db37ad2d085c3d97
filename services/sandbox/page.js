// Every two seconds: take the page anew and, if something changed, put it in place of the old one,
// leaving open what the reader opened and alone what the reader has selected. Without JavaScript
// the page reloads itself instead.
"use strict";
let shown;
async function refresh() {
  try {
    const text = await (await fetch(location.href)).text();
    if (text !== shown && getSelection().isCollapsed) {
      const open = [...document.querySelectorAll("details[open]")].map((each) => each.id);
      const fresh = new DOMParser().parseFromString(text, "text/html");
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      shown = text;
    }
  } catch {
    // The sandbox is away; the next round tries again.
  }
  setTimeout(refresh, 2000);
}
refresh();
