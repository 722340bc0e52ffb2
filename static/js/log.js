// A log that grows: only the lines asked for, its end followed while the reader is there, held still on demand, copied.

import { copy } from "./copy.js";

const AT_END_PX = 24;
const SHOWN_MS = 1600;
const TARGET = "#model-log";
// Which levels each choice shows.
const SHOWN = { "": null, warning: ["warning", "error"], error: ["error"] };

const one = (name) => document.querySelector(`[data-log${name}]`);
const log = () => one("");
const [text, level, pause, copying, count, tools] = ["-text", "-level", "-pause", "-copy", "-count", "-tools"].map(one);

let atEnd = true;
// The newest state of a log that is held still.
let held = null;
let paused = false;

function lines() {
  return [...(log()?.querySelectorAll(".log-line") ?? [])];
}

function show() {
  const wanted = text.value.toLowerCase();
  const levels = SHOWN[level.value];
  let shown = 0;
  for (const line of lines()) {
    const fits = (!levels || levels.includes(line.dataset.level)) && line.textContent.toLowerCase().includes(wanted);
    if (line.hidden === fits) line.hidden = !fits;
    shown += fits;
  }
  const words = wanted || levels ? `${shown} of ${lines().length} lines` : "";
  if (count.textContent !== words) count.textContent = words;
  if (atEnd && log()) log().scrollTop = log().scrollHeight;
}

function hold(event) {
  const { message } = event.detail;
  if (!paused || message.json?.target !== TARGET) return;
  held = message.json;
  message.cancelled = true;
}

function togglePause() {
  paused = !paused;
  pause.setAttribute("aria-pressed", String(paused));
  pause.textContent = paused ? "Go on" : "Pause";
  if (paused || !held) return;
  const { content, target, swap } = held;
  held = null;
  window.htmx.swap({ sourceElement: document.body, target, swap, text: content, transition: false });
}

async function copyShown() {
  const shown = lines().filter((line) => !line.hidden);
  let word = "Copied";
  try {
    await copy(shown.map((line) => line.textContent).join(""));
  } catch {
    word = "Not copied";
  }
  copying.textContent = word;
  setTimeout(() => (copying.textContent = "Copy"), SHOWN_MS);
}

if (text) {
  for (const control of [text, level, pause, copying]) control.hidden = false;
  tools.dataset.sends = "";
  tools.addEventListener("change", ({ target }) => target.form?.submit());
  text.addEventListener("input", show);
  level.addEventListener("change", show);
  pause.addEventListener("click", togglePause);
  copying.addEventListener("click", copyShown);
  document.addEventListener("htmx:before:ws:message", hold);
  document.addEventListener(
    "scroll",
    (event) => {
      if (event.target !== log()) return;
      const { scrollTop, scrollHeight, clientHeight } = event.target;
      atEnd = scrollHeight - scrollTop - clientHeight < AT_END_PX;
    },
    true,
  );
  // New lines come as the server has them: all to be seen. They are sorted out before anything is painted.
  const changed = { childList: true, subtree: true, characterData: true, attributeFilter: ["hidden"] };
  new MutationObserver(show).observe(document.querySelector(TARGET).parentElement, changed);
  show();
}
