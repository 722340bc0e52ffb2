// The models pages: questions before something ends, the focus when what had it is gone, durations that go on.

const UNITS = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
const EVERY_MS = 1000;

// Questions: htmx asks before a request, plain forms before they are sent

const dialog = document.getElementById("confirm");

function ask(question) {
  return new Promise((resolve) => {
    dialog.querySelector("#confirm-words").textContent = question;
    // A question begins with its verb: Stop, Remove, Switch off, Sign out.
    dialog.querySelector("#confirm-yes").textContent = question.match(/^\S+( (off|out)\b)?/)[0];
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });
}

document.addEventListener("htmx:confirm", (event) => {
  const { ctx, issueRequest, dropRequest } = event.detail;
  event.preventDefault();
  ask(ctx.confirm).then((yes) => (yes ? issueRequest() : dropRequest()));
});

const confirmed = new WeakSet();

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.dataset.confirm || confirmed.delete(form)) return;
  event.preventDefault();
  ask(form.dataset.confirm).then((yes) => {
    if (!yes) return;
    confirmed.add(form);
    form.requestSubmit(event.submitter);
  });
});

// Focus: where a change takes the focused button away, the block around it has the focus, and a keyboard goes on from there

let path = []; // what was focused last, and all it stood in

document.addEventListener("focusin", ({ target }) => {
  path = [];
  for (let one = target; one; one = one.parentElement) path.push(one);
});

function keepFocus() {
  if (document.activeElement !== document.body || !path.length || path[0].isConnected) return;
  path.find((one) => one.isConnected && one.matches('[tabindex="-1"]'))?.focus({ preventScroll: true });
}

document.addEventListener("htmx:after:swap", keepFocus);
document.addEventListener("htmx:after:ws:message", keepFocus);

// Durations

function age(since) {
  const seconds = Math.max(0, Math.floor((Date.now() - Date.parse(since)) / 1000));
  const [size, unit] = UNITS.find(([size]) => seconds >= size) ?? UNITS.at(-1);
  return `${Math.floor(seconds / size)} ${unit}`;
}

setInterval(() => {
  for (const time of document.querySelectorAll("time[data-since]")) {
    const words = age(time.dataset.since) + ("ago" in time.dataset ? " ago" : "");
    if (time.textContent !== words) time.textContent = words;
  }
}, EVERY_MS);
