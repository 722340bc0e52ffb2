// What htmx asked for and didn't get is said in one place that is seen wherever the page is scrolled to. The page itself
// stays as it was. What goes well for the same element takes the words away again.

const NO_ANSWER = "The portal doesn't answer. Look at your connection, then try again.";
const STALE = "This page isn't kept up to date just now: the portal doesn't answer. It goes on by itself.";
const NO_REASON = "That didn't work: the portal made a mistake, and has written it to its log.";
const ENTRANCE = "/accounts/login/";

const box = document.getElementById("failure");
const words = box.querySelector("[data-part=words]");
let source = null;

const asksByItself = (element) => element.getAttribute("hx-trigger")?.startsWith("every") ?? false;

function say(text, element) {
  source = element;
  if (words.textContent !== text) words.textContent = text;
  box.hidden = false;
}

function close() {
  box.hidden = true;
  words.textContent = "";
  source = null;
}

/** The reason as the answer gives it, in a fragment or on a page of its own. */
function reason(text) {
  return new DOMParser().parseFromString(text, "text/html").querySelector(".notice p, .lede")?.textContent;
}

document.addEventListener("htmx:before:response", (event) => {
  const { raw } = event.detail.ctx.response;
  if (!raw.redirected || new URL(raw.url).pathname !== ENTRANCE) return;
  event.preventDefault();
  location.reload(); // signed out meanwhile: the page itself leads to the entrance, and back
});

document.addEventListener("htmx:response:error", ({ detail: { ctx } }) => {
  ctx.status = "refused"; // nothing is put into the page
  say(asksByItself(ctx.sourceElement) ? STALE : (reason(ctx.text) ?? NO_REASON), ctx.sourceElement);
});

document.addEventListener("htmx:error", ({ detail: { ctx } }) => {
  if (ctx) say(asksByItself(ctx.sourceElement) ? STALE : NO_ANSWER, ctx.sourceElement);
});

document.addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
  if (ctx.sourceElement === source) close();
});

box.querySelector("[data-failure-close]").addEventListener("click", close);
