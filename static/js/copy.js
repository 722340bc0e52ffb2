// Buttons that copy: a listing's code, or a message's text.

const SHOWN_MS = 1600;

/** Put text on the clipboard, also where the page is served without https. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("the browser refused");
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const listing = button.closest("figure.code")?.querySelector("code");
  const text = listing ? listing.textContent : button.closest("[data-message]").querySelector('[data-part="text"]').innerText;
  let word = "Copied";
  try {
    await copy(text);
    button.dataset.copied = "";
  } catch {
    word = "Not copied";
  }
  const status = document.getElementById("chat-status");
  if (status) status.textContent = word;
  if (listing) {
    button.textContent = word;
    setTimeout(() => (button.textContent = "Copy"), SHOWN_MS);
  }
  setTimeout(() => delete button.dataset.copied, SHOWN_MS);
});
