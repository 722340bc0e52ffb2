// The frame: theme switch, folding sidebar, drawer on narrow screens, menus, the conversation dialogs, forms being sent.

import "./failures.js";
import "./live.js";

const root = document.documentElement;
const narrow = matchMedia("(width < 900px)");

function remember(name, value) {
  try {
    if (value) localStorage.setItem(name, value);
    else localStorage.removeItem(name);
  } catch {
    // Storage is switched off: the choice holds for this page.
  }
}

// Theme

const themes = document.querySelector("[data-theme-switch]");
if (themes) {
  const current = themes.querySelector(`[value="${root.dataset.theme ?? "system"}"]`);
  if (current) current.checked = true;
  themes.addEventListener("change", (event) => {
    const theme = event.target.value === "system" ? "" : event.target.value;
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    remember("theme", theme);
    document.dispatchEvent(new CustomEvent("themechange"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
    document.dispatchEvent(new CustomEvent("themechange")),
  );
}

// Sidebar: a rail of icons on wide screens, a drawer on narrow ones

const sidebar = document.getElementById("sidebar");
const main = document.getElementById("main");
const opener = document.querySelector("[data-drawer-open]");
const railToggle = document.querySelector("[data-rail-toggle]");

function showRail() {
  const folded = root.dataset.sidebar === "rail";
  railToggle?.setAttribute("aria-expanded", String(!folded));
  railToggle?.setAttribute("aria-label", folded ? "Unfold the sidebar" : "Fold the sidebar");
}

function setDrawer(open) {
  if (open) root.dataset.drawer = "open";
  else delete root.dataset.drawer;
  main.inert = open;
  opener.setAttribute("aria-expanded", String(open));
  if (open) sidebar.querySelector("[data-drawer-close]").focus();
}

if (sidebar && main && opener) {
  showRail();
  railToggle?.addEventListener("click", () => {
    if (root.dataset.sidebar === "rail") delete root.dataset.sidebar;
    else root.dataset.sidebar = "rail";
    remember("sidebar", root.dataset.sidebar ?? "");
    showRail();
  });
  opener.addEventListener("click", (event) => {
    event.preventDefault();
    setDrawer(true);
  });
  for (const closer of document.querySelectorAll("[data-drawer-close]")) {
    closer.addEventListener("click", (event) => {
      event.preventDefault();
      setDrawer(false);
      opener.focus();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && root.dataset.drawer && !document.querySelector("dialog[open]")) {
      setDrawer(false);
      opener.focus();
    }
  });
  narrow.addEventListener("change", () => setDrawer(false));
  sidebar.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

// Menus close on a click elsewhere and on Escape

document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details[data-menu][open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details[data-menu][open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

// Dialogs: one for renaming, one for deleting, filled with the conversation they were opened for

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-conversation-dialog]");
  if (button) {
    const dialog = document.getElementById(`conversation-${button.dataset.conversationDialog}`);
    const title = button.closest("[data-conversation]").querySelector('[data-part="title"]').textContent.trim();
    dialog.querySelector("form").action = button.dataset.action;
    const field = dialog.querySelector("input[name=title]");
    if (field) field.value = title;
    const words = dialog.querySelector('[data-part="title"]');
    if (words) words.textContent = title;
    dialog.showModal();
    field?.select();
  }
  if (event.target.closest("[data-dialog-close]") || event.target.matches("dialog[open]")) {
    event.target.closest("dialog").close();
  }
});

// A form that is being sent says so, and is sent once. Heard last: what a script sends, or asks about first, is not meant.

const SENT_FOR_MS = 10_000;

function settle(form) {
  delete form.dataset.sent;
  for (const button of form.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
}

addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method === "dialog") return;
  if ("sent" in form.dataset) return event.preventDefault();
  form.dataset.sent = "";
  event.submitter?.setAttribute("aria-busy", "true");
  setTimeout(settle, SENT_FOR_MS, form); // its answer didn't come, or was a file
});
addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach(settle));
