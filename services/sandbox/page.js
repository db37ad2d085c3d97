// Every two seconds, load the page and replace its content if it changed. Sections that the reader
// opened stay open, and nothing is replaced while text is selected. Without JavaScript the whole
// page reloads instead.
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
    // The sandbox is unavailable. The next round loads the page again.
  }
  setTimeout(refresh, 2000);
}
refresh();
