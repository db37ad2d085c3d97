// Live parts: an element with data-live shows what a stream of the console sends.
// data-live-rows: the number of rows to keep; new ones are added at the top. Without it, the whole
// content is replaced.

for (const part of document.querySelectorAll("[data-live]")) follow(part);

function follow(part) {
  const button = document.querySelector(`[data-live-button="${part.id}"]`);
  const state = document.querySelector(`[data-live-state="${part.id}"]`);
  const rows = Number(part.dataset.liveRows ?? 0);
  let source = null;

  const open = () => {
    source = new EventSource(part.dataset.live);
    source.onopen = () => say("Live");
    source.onmessage = (event) => show(event.data);
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) say("Live updates have ended. Reload the page.");
      else say("Connecting …");
    };
  };
  const close = () => {
    source.close();
    source = null;
    say("Paused");
  };
  const say = (text) => {
    if (state && state.textContent !== text) state.textContent = text;
  };
  const show = (html) => {
    if (rows) {
      part.insertAdjacentHTML("afterbegin", html);
      while (part.children.length > rows) part.lastElementChild.remove();
      return;
    }
    // A part that somebody uses with the keyboard is not replaced under their fingers.
    if (part.contains(document.activeElement)) return;
    const wasOpen = [...part.querySelectorAll("details")].map((each) => each.open);
    part.innerHTML = html;
    part.querySelectorAll("details").forEach((each, index) => (each.open = wasOpen[index] ?? false));
  };

  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      if (source) close();
      else open();
      button.textContent = source ? "Pause updates" : "Continue updates";
    });
  }
  addEventListener("pagehide", () => source?.close());
  open();
}
