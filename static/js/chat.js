// The chat page over its socket (htmx's ws extension). Frames are {"type", "data", "requestId"}; without a socket the
// forms post as they are.
//
// An answer grows block by block: finished blocks are set once, the open last one is redrawn. `blocks` of a frame says
// how many finished ones the server takes for granted; when the page has fewer, it asks to resume.

const UNFINISHED = new Set(["queued", "loading", "reading", "writing"]);
const WAITING_WORDS = { queued: "waiting", loading: "loading model", reading: "reading prompt", writing: "writing" };
const ENDED_WORDS = { done: "Answer finished", stopped: "Answer stopped", failed: "Answer failed" };
const AT_END_PX = 24;

const chat = document.getElementById("chat");
const thread = document.getElementById("thread");
const messages = document.getElementById("messages");
const composer = document.getElementById("composer");
const field = document.getElementById("composer-text");
const newText = document.getElementById("new-text");
const announcer = document.getElementById("chat-status");

// The socket -----------------------------------------------------------------------------------------------------

let connection = null;
let requests = 0;

function send(type, data) {
  if (connection?.socket?.readyState !== WebSocket.OPEN) return null;
  const requestId = `${Date.now()}-${(requests += 1)}`;
  connection.socket.send(JSON.stringify({ type, data, requestId }));
  return requestId;
}

/** Say what the page shows; the server answers with what is missing. */
function resume() {
  const open = {};
  for (const article of messages.children) {
    // The last answer may have been begun anew meanwhile, when it failed or was stopped.
    const retriable = article === messages.lastElementChild && article.dataset.status !== "done";
    if (isUnfinished(article) || (retriable && article.dataset.role === "assistant")) {
      open[article.dataset.message] = finishedBlocks(article);
    }
  }
  send("resume", { last: messages.lastElementChild?.dataset.message ?? null, open });
}

chat.addEventListener("htmx:after:ws:connection", (event) => {
  connection = event.detail.connection;
  resume();
});
chat.addEventListener("htmx:ws:close", () => {
  unsure = pending ?? unsure;
  settle();
});
chat.addEventListener("htmx:before:ws:message", (event) => {
  const frame = event.detail.message.json;
  if (!frame || !Object.hasOwn(frames, frame.type)) return;
  event.preventDefault();
  frames[frame.type](frame.data, frame.requestId);
  showBusy();
});

// Frames of the server -------------------------------------------------------------------------------------------

// Finished blocks of each unfinished answer, by message id.
const finished = new Map();

function finishedBlocks(article) {
  const id = article.dataset.message;
  // The page as loaded may show up to two blocks at the end that can still change: it drew the last line, whole or not.
  if (!finished.has(id)) finished.set(id, Math.max(0, part(article, "text").children.length - 2));
  return finished.get(id);
}

const part = (article, name) => article.querySelector(`[data-part="${name}"]`);
const isUnfinished = (article) => UNFINISHED.has(article?.dataset.status);

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

function setBlock(text, index, html, open) {
  let block = text.children[index];
  if (!block) {
    block = document.createElement("div");
    block.className = "block";
    text.append(block);
  }
  block.toggleAttribute("data-open", open);
  block.innerHTML = html;
}

const frames = {
  answer(data) {
    const article = document.getElementById(`m-${data.message}`);
    if (!article || data.blocks > finishedBlocks(article)) return resume();
    const text = part(article, "text");
    data.append.forEach((html, index) => setBlock(text, data.blocks + index, html, false));
    let count = data.blocks + data.append.length;
    finished.set(data.message, count);
    if (data.open) {
      setBlock(text, count, data.open, true);
      count += 1;
    }
    while (text.children.length > count) text.lastElementChild.remove();

    article.dataset.status = data.status;
    const progress = part(article, "progress");
    if (progress) progress.textContent = data.progress || WAITING_WORDS[data.status] || "";
    if (data.meta) part(article, "meta").replaceWith(element(data.meta));
    if (!isUnfinished(article)) ended(article);
    if (!following && (data.open || data.append.length)) newText.hidden = false;
  },

  message(data) {
    const fresh = element(data.html);
    const old = document.getElementById(`m-${data.message}`);
    finished.set(data.message, 0);
    if (!old) {
      messages.append(fresh);
    } else {
      if (isUnfinished(old) && isUnfinished(fresh)) {
        // Its text follows in the next frame; until then what was read stays in view.
        part(fresh, "text").replaceChildren(...part(old, "text").children);
      }
      old.replaceWith(fresh);
      if (isUnfinished(old) && !isUnfinished(fresh)) ended(fresh);
    }
    if (fresh.dataset.role === "user") confirmSent(part(fresh, "text").textContent);
  },

  removed(data) {
    document.getElementById(`m-${data.message}`)?.remove();
  },

  title({ title, conversation = composer?.dataset.conversationPk }) {
    document.getElementById("conversation-title").textContent = title;
    document.title = `${title} · llamaproj`;
    const entry = document.querySelector(`.conversation[data-conversation="${conversation}"]`);
    if (!entry) return;
    const link = part(entry, "title");
    link.textContent = link.title = title;
    for (const button of entry.querySelectorAll("button")) {
      button.ariaLabel = `${button.dataset.conversationDialog === "rename" ? "Rename" : "Delete"} ${title}`;
    }
  },

  error(data, requestId) {
    if (pending && requestId === pending.requestId) settle();
    showError(data.message);
  },
};

function ended(article) {
  finished.delete(article.dataset.message);
  announcer.textContent = ENDED_WORDS[article.dataset.status] ?? "";
}

// The view follows the end while the reader is there -------------------------------------------------------------

let following = true;
let lastTop = 0;

function toEnd() {
  thread.scrollTop = thread.scrollHeight;
  lastTop = thread.scrollTop;
}

if (messages && newText) {
  thread.addEventListener("scroll", () => {
    const atEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight <= AT_END_PX;
    if (thread.scrollTop < lastTop) following = false;
    if (atEnd) following = true;
    lastTop = thread.scrollTop;
    if (following) newText.hidden = true;
  }, { passive: true });
  newText.addEventListener("click", () => {
    following = true;
    newText.hidden = true;
    toEnd();
    field.focus();
  });
  const sizes = new ResizeObserver(() => following && toEnd());
  sizes.observe(messages);
  sizes.observe(thread);
}

// The composer ---------------------------------------------------------------------------------------------------

// What was sent and isn't confirmed: it stays in the field until the server shows it. When the socket closes before
// that, nobody knows whether it arrived; the messages after the next connection tell.
let pending = null;
let unsure = null;
let posting = false;
let reached = false;

const sendButton = composer?.querySelector("[data-send]");
const stopButton = composer?.querySelector("[data-stop]");
const draftKey = `draft:${composer?.dataset.conversationPk}`;

function isBusy() {
  return isUnfinished(messages?.lastElementChild);
}

/** Send and Stop share a place. */
function showBusy() {
  if (!stopButton) return;
  const busy = isBusy();
  if (stopButton.hidden !== busy) return;
  const [shown, hidden] = busy ? [stopButton, sendButton] : [sendButton, stopButton];
  const focused = document.activeElement === hidden;
  shown.hidden = false;
  hidden.hidden = true;
  if (focused) shown.focus();
}

function showError(words) {
  const box = document.getElementById("composer-error");
  if (!box) return; // a page that only reads
  part(box, "words").textContent = words;
  box.hidden = !words;
}

function keepDraft(text = field.value) {
  try {
    if (text.trim()) sessionStorage.setItem(draftKey, text);
    else sessionStorage.removeItem(draftKey);
  } catch {
    // Storage is switched off: a reload loses the draft.
  }
}

function draft() {
  try {
    return sessionStorage.getItem(draftKey) ?? "";
  } catch {
    return "";
  }
}

function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function setText(text) {
  field.value = text;
  keepDraft();
  grow();
}

/** The field is the person's again; what they wrote is still in it. */
function settle() {
  pending = null;
  if (field) field.readOnly = false;
}

function confirmSent(text) {
  const sent = pending ?? unsure;
  if (!sent || text.trim() !== sent.text) return;
  settle();
  unsure = null;
  if (field.value.trim() === sent.text) setText("");
}

/** Send what was written over the socket. False: the form must post it. */
function sendMessage() {
  const text = field.value.replaceAll("\r\n", "\n").trim();
  const requestId = send("send", { text, model: composer.elements.model.value });
  if (!requestId) return false;
  pending = { requestId, text };
  unsure = null;
  field.readOnly = true;
  following = true;
  showError("");
  return true;
}

/** Let the form post itself, once, if there is somebody to post to: an error page would take the place of the chat. */
async function post(button) {
  posting = true;
  const answer = await fetch("/healthz", { cache: "no-store" }).catch(() => null);
  reached = posting = answer?.ok ?? false;
  if (!reached) return showError("The portal can't be reached just now. What you wrote is kept; try again in a moment.");
  if (!messages) keepDraft(""); // the conversation it begins has its own
  composer.requestSubmit(button);
}

if (composer) {
  const said = [...(messages?.querySelectorAll('[data-role="user"]') ?? [])].at(-1);
  const kept = draft();
  if (!field.value && kept && kept.trim() !== (said && part(said, "text").textContent.trim())) field.value = kept;
  keepDraft();
  grow();
  if (matchMedia("(pointer: fine)").matches) field.focus();

  field.addEventListener("input", () => {
    keepDraft();
    grow();
  });

  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (isBusy()) showError("The answer is still being written. Stop it, or wait for its end.");
    else if (field.value.trim() && !pending && !sendButton.disabled) composer.requestSubmit(sendButton);
  });

  composer.addEventListener("submit", (event) => {
    if (reached) return; // the form posts itself
    event.preventDefault();
    const button = event.submitter ?? sendButton;
    let sent = false;
    if (button.dataset.retry) {
      showError("");
      sent = send("retry", { message: button.dataset.retry });
    } else if (button === stopButton) {
      sent = send("stop", { message: messages.lastElementChild.dataset.message });
    } else {
      sent = pending !== null || sendMessage();
    }
    if (!sent && !posting) post(button);
  });
  addEventListener("pageshow", () => (posting = reached = false));

  document.addEventListener("keydown", (event) => {
    const elsewhere = document.querySelector("dialog[open], details[data-menu][open]");
    if (event.key !== "Escape" || event.isComposing || elsewhere || document.documentElement.dataset.drawer) return;
    if (isBusy()) composer.requestSubmit(stopButton);
  });

  chat.addEventListener("click", (event) => {
    const starter = event.target.closest("[data-starter]");
    if (!starter) return;
    setText(starter.dataset.starter);
    field.focus();
  });
}
