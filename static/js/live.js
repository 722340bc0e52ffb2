// The page's socket state on <body data-live="yes|no">, and a JSON socket that comes back by itself.
//
// Sockets of htmx's ws extension are watched through its events. Pages with their own JSON socket use
//   const socket = connectLive("/ws/monitoring/", (frame) => …, { onOpen: (send) => … });
//   socket.send({type: "…", data: {…}}); socket.close();

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 10_000;
// The server's word for a socket whose session has ended: the page leads to signing in.
const SIGNED_OUT = 4401;

const sockets = new Map();

/** Note whether the socket `key` is open; the page is live while all its sockets are. */
export function setLive(key, open) {
  sockets.set(key, open);
  document.body.dataset.live = [...sockets.values()].every(Boolean) ? "yes" : "no";
}

document.addEventListener("htmx:after:ws:connection", (event) => setLive(event.detail.connection.url, true));
document.addEventListener("htmx:ws:close", (event) => {
  setLive(event.detail.connection.url, false);
  if (event.detail.code === SIGNED_OUT) location.reload();
});

/** Keep a socket open at `url` (a path) and hand each JSON frame to `onMessage`. Reconnects with growing pauses. */
export function connectLive(url, onMessage, { onOpen = () => {} } = {}) {
  let socket = null;
  let timer = 0;
  let delay = FIRST_DELAY_MS;
  let closed = false;

  const send = (frame) => {
    if (socket?.readyState !== WebSocket.OPEN) return false;
    socket.send(JSON.stringify(frame));
    return true;
  };

  function connect() {
    clearTimeout(timer);
    if (closed || (socket && socket.readyState <= WebSocket.OPEN)) return;
    const address = new URL(url, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const mine = new WebSocket(address);
    socket = mine;
    mine.addEventListener("open", () => {
      delay = FIRST_DELAY_MS;
      setLive(url, true);
      onOpen(send);
    });
    mine.addEventListener("message", (event) => {
      if (mine === socket) onMessage(JSON.parse(event.data));
    });
    mine.addEventListener("close", (event) => {
      if (mine !== socket) return;
      setLive(url, false);
      if (closed) return;
      if (event.code === SIGNED_OUT) {
        location.reload();
        return;
      }
      timer = setTimeout(connect, delay * (0.7 + 0.6 * Math.random()));
      delay = Math.min(delay * 2, LONGEST_DELAY_MS);
    });
  }

  function reconnectNow() {
    if (document.hidden) return;
    delay = FIRST_DELAY_MS;
    connect();
  }

  addEventListener("online", reconnectNow);
  addEventListener("pageshow", reconnectNow);
  addEventListener("pagehide", () => socket?.close());
  document.addEventListener("visibilitychange", reconnectNow);
  connect();

  return {
    send,
    close() {
      closed = true;
      clearTimeout(timer);
      socket?.close();
    },
  };
}
