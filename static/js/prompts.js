// The prompt library under a message being written: the button, or `/` in an empty message, opens a list to choose from.

const composer = document.getElementById("composer");
const field = document.getElementById("composer-text");
const opener = composer?.querySelector("[data-prompts]");
const picker = document.getElementById("prompt-picker");

if (opener && picker) {
  const search = picker.querySelector("input");
  const list = picker.querySelector(".prompt-choices");
  const shown = () => [...list.querySelectorAll(".prompt-choice:not([hidden])")];
  const chosen = () => list.querySelector('[aria-selected="true"]');

  function select(choice) {
    chosen()?.setAttribute("aria-selected", "false");
    choice?.setAttribute("aria-selected", "true");
    choice?.scrollIntoView({ block: "nearest" });
    if (choice) search.setAttribute("aria-activedescendant", choice.id);
    else search.removeAttribute("aria-activedescendant");
  }

  function filter() {
    const words = search.value.trim().toLowerCase();
    for (const choice of list.querySelectorAll(".prompt-choice")) {
      choice.hidden = !choice.textContent.toLowerCase().includes(words);
    }
    select(shown()[0]);
  }

  async function open() {
    const answer = await fetch(opener.dataset.prompts, { headers: { "HX-Request": "true" } }).catch(() => null);
    if (!answer?.ok) return location.assign(opener.href);
    list.innerHTML = await answer.text();
    picker.hidden = false;
    opener.setAttribute("aria-expanded", "true");
    search.value = "";
    filter();
    search.focus();
  }

  function close() {
    picker.hidden = true;
    opener.setAttribute("aria-expanded", "false");
    field.focus();
  }

  function insert(choice) {
    const before = field.value.trim() ? `${field.value.trimEnd()}\n\n` : "";
    field.value = before + choice.dataset.prompt;
    field.dispatchEvent(new Event("input", { bubbles: true }));
    close();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  opener.addEventListener("click", (event) => {
    event.preventDefault();
    if (picker.hidden) open();
    else close();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "/" || field.value || event.isComposing) return;
    event.preventDefault();
    open();
  });
  search.addEventListener("input", filter);
  list.addEventListener("click", (event) => {
    const choice = event.target.closest(".prompt-choice");
    if (choice) insert(choice);
  });
  picker.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const choices = shown();
    if (step && choices.length) {
      event.preventDefault();
      select(choices.at((choices.indexOf(chosen()) + step) % choices.length));
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (chosen()) insert(chosen());
    } else if (event.key === "Escape") {
      event.stopPropagation();
      // A slash that was meant as one.
      if (!search.value && !field.value) field.value = "/";
      close();
    }
  });
  document.addEventListener("click", (event) => {
    if (!picker.hidden && !picker.contains(event.target) && !opener.contains(event.target)) close();
  });
}
