/* The dashboard: history from the server, then a sample every two seconds over the socket. What a lost connection missed
   is fetched from the history; what was never measured stays a gap. */

import { timeChart } from "./charts.js";
import { binary, percent, perSecond, short } from "./figures.js";
import { Gauge } from "./gauges.js";
import { History } from "./history.js";
import { connectLive } from "./live.js";

const SILENT_AFTER_MS = 8000;

const page = document.getElementById("dashboard");
const { node, minutes } = page.dataset;
const stale = document.getElementById("stale");
const servers = document.getElementById("servers");
const serverRow = document.getElementById("server-row");
const span = Number(minutes) * 60;

let past = null;
let memoryTotal = null;
let lastAt = null;
let heardAt = Date.now();
let loading = null;

const words = (show) => (value) => show(value).join(" ");
const CHARTS = {
  cpu: { series: [["CPU", "cpu_percent", 1]], show: words(percent), top: () => 102 },
  memory: { series: [["used", "memory_used_bytes", 1]], show: words(binary), top: () => memoryTotal, steps: "bytes" },
  tokens: {
    series: [["generated", "generated_tokens_s", 1], ["prompt read", "prompt_tokens_s", 2]],
    show: (value) => `${short(value)} /s`,
  },
  requests: { series: [["running", "requests_processing", 1], ["waiting", "requests_deferred", 3]], show: short, steps: "whole" },
  network: {
    series: [["in", "network_in_bytes_s", 1], ["out", "network_out_bytes_s", 2]], show: words(perSecond), steps: "bytes",
  },
  gpu: { series: [["GPU", "gpu_percent", 1]], show: words(percent), top: () => 102 },
  load: { series: [["over a minute", "load_1", 1]], show: short },
};
const gauges = [...page.querySelectorAll("[data-metric]")].map((element) => new Gauge(element));
const charts = [...page.querySelectorAll("[data-chart]")].map((figure) => ({
  figure, draw: timeChart(figure, { ...CHARTS[figure.dataset.chart], span }),
}));

function drawCharts() {
  for (const { figure, draw } of charts) {
    figure.hidden = figure.dataset.chart === "gpu" && past.columns.gpu_percent.every((value) => value == null);
    if (!figure.hidden) draw(past);
  }
}

function showServer(row, server) {
  const cell = (name) => row.querySelector(`[data-cell=${name}]`);
  const text = (name, value, show) => {
    cell(name).textContent = value == null ? "–" : show(value);
  };
  const amount = (name, value, of) => {
    text(name, value, () => `${value.toLocaleString("en")} of ${of.toLocaleString("en")}`);
    const meter = cell(`${name}-meter`);
    meter.hidden = value == null || !of;
    meter.max = of || 1;
    meter.value = value ?? 0;
  };
  text("name", server.name, String);
  cell("name").title = server.pid ? `process ${server.pid}, ${server.threads} threads` : "no process";
  text("state", server.state.replace("_", " "), String);
  cell("state").dataset.state = server.state;
  text("cpu", server.cpu_percent, words(percent));
  text("memory", server.memory_bytes, words(binary));
  text("generated", server.generated_tokens_s, (value) => `${short(value)} /s`);
  text("prompt", server.prompt_tokens_s, (value) => `${short(value)} /s`);
  amount("slots", server.slots_busy, server.slots);
  amount("context", server.context_used_tokens, server.context_tokens);
}

function showServers(list) {
  const rows = new Map([...servers.children].map((row) => [row.dataset.instance, row]));
  for (const server of list) {
    let row = rows.get(server.id);
    rows.delete(server.id);
    if (!row) {
      row = serverRow.content.firstElementChild.cloneNode(true);
      row.dataset.instance = server.id;
      servers.append(row);
    }
    showServer(row, server);
  }
  for (const gone of rows.values()) gone.remove();
  document.getElementById("servers-table").hidden = !list.length;
  document.getElementById("no-servers").hidden = list.length > 0;
}

function show({ timestamp, data }) {
  const at = Date.parse(timestamp) / 1000;
  if (lastAt !== null && at <= lastAt) return;
  lastAt = at;
  memoryTotal = data.memory.total_bytes;
  for (const gauge of gauges) gauge.show(data);
  showServers(data.instances);
  past.add(at, data);
  drawCharts();
}

async function ask(minutes) {
  const response = await fetch(`${page.dataset.history}?${new URLSearchParams({ node, minutes })}`);
  if (!response.ok) throw new Error(`The history can't be had (${response.status}).`);
  return response.json();
}

/* The past of the charts and of the sparklines. */
async function load() {
  const [long, lastMinute] = await Promise.all([ask(minutes), ask(1)]);
  past = new History(long, span);
  lastAt = null;
  memoryTotal = long.latest?.data.memory.total_bytes ?? memoryTotal;
  for (const gauge of gauges) gauge.remember(lastMinute.columns, memoryTotal);
  if (long.latest) show(long.latest);
  else drawCharts();
}

/* At most one question at a time. One that fails is asked again by the next sample. */
function loadOnce() {
  loading ??= load().catch((error) => console.warn(error.message)).finally(() => {
    loading = null;
  });
  return loading;
}

async function receive(frame) {
  if (frame.type !== "sample") return;
  heardAt = Date.now();
  if (!past || past.misses(Date.parse(frame.timestamp) / 1000)) await loadOnce();
  if (past) show(frame);
}

function watchSilence() {
  const silent = Date.now() - heardAt;
  stale.hidden = silent < SILENT_AFTER_MS;
  page.toggleAttribute("data-stale", !stale.hidden);
  if (!stale.hidden) stale.textContent = `${node} has sent nothing for ${Math.round(silent / 1000)} s. What stands here is what it sent last.`;
}

setInterval(watchSilence, 1000);
const choice = document.getElementById("node-choice");
if (choice) {
  choice.addEventListener("change", () => choice.form.requestSubmit());
  choice.form.querySelector("button").hidden = true;
}
connectLive(`/ws/monitoring/?${new URLSearchParams({ node })}`, receive);
loadOnce();
