/* The charts of use: stacked bars over time, drawn by uPlot (a global from its own script) from the columns in the page.
   Hours, days and months are those of UTC, as the sums are. */

import { short } from "./figures.js";

/* global uPlot */

const HEIGHT = 200;
const UNITS = ["", "k", "M", "B", "T"];
const FORMATS = {
  hour: { weekday: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" },
  day: { day: "numeric", month: "short" },
  month: { month: "short", year: "numeric" },
};
const TINTS = {
  kind: ["series-2", "series-1"],
  model: ["series-1", "series-2", "series-3", "series-4", "series-5"],
  requests: ["series-1", "bad"],
};

const columns = JSON.parse(document.getElementById("usage-columns").textContent);
const format = new Intl.DateTimeFormat("en", { ...FORMATS[columns.step], timeZone: "UTC" });
const moment = (at) => format.format(at * 1000);
const together = uPlot.sync("usage");
const charts = new Set();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function redrawAll() {
  for (const chart of charts) chart.redraw(false);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
new MutationObserver(redrawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });

function amount(value) {
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${short(value)}${unit ? ` ${UNITS[unit]}` : ""}`;
}

/* The tops of the bars, the whole stack first: each next one is drawn over the one before. */
function tops(stack) {
  const running = columns.at.map(() => 0);
  return stack
    .map(([, values]) => values.map((value, place) => (running[place] += value)))
    .reverse();
}

function key(name, tint) {
  const label = document.createElement("span");
  label.className = "series";
  label.dataset.tint = tint;
  label.textContent = name;
  return label;
}

function draw(figure, name) {
  const plot = figure.querySelector("[data-part=plot]");
  const readout = figure.querySelector("[data-part=readout]");
  const stack = columns.stacks[name];
  const values = stack.map(() => document.createElement("b"));
  const when = document.createElement("span");
  when.className = "chart-moment";
  readout.replaceChildren(...stack.flatMap(([label], place) => [key(label, TINTS[name][place]), values[place]]), when);
  plot.replaceChildren();

  const axis = {
    stroke: () => colour("--ink-3"),
    font: `12px ${colour("--sans")}`,
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { stroke: () => colour("--line"), width: 1, size: 4 },
  };
  const bars = uPlot.paths.bars({ size: [0.78, 48], align: 1, radius: 0 });
  const tints = TINTS[name].slice(0, stack.length).reverse();
  const chart = new uPlot(
    {
      width: Math.max(Math.floor(plot.clientWidth), 200),
      height: HEIGHT,
      legend: { show: false },
      tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
      cursor: { sync: { key: together.key }, drag: { x: false, y: false }, y: false, points: { show: false } },
      scales: {
        x: { time: true, range: () => [columns.at[0], columns.until] },
        y: { range: (_, low, high) => [0, (high || 1) * 1.08] },
      },
      axes: [
        { ...axis, grid: { show: false }, space: columns.step === "hour" ? 84 : 64, size: 28, values: (_, splits) => splits.map(moment) },
        { ...axis, space: 28, size: 56, values: (_, splits) => splits.map(amount), incrs: steps() },
      ],
      series: [
        {},
        ...tints.map((tint) => ({
          paths: bars, fill: () => colour(`--${tint}`), stroke: () => colour(`--${tint}`), width: 0, points: { show: false },
        })),
      ],
      hooks: { setCursor: [say] },
    },
    [columns.at, ...tops(stack)],
    plot,
  );

  /* What the pointer is at, otherwise the whole period. */
  function say(chart) {
    const at = chart.cursor.idx;
    stack.forEach(([, column], place) => {
      values[place].textContent = amount(at == null ? column.reduce((sum, value) => sum + value, 0) : column[at]);
    });
    when.textContent = at == null ? "" : moment(columns.at[at]);
  }

  say(chart);
  charts.add(chart);
  const watch = new ResizeObserver(() => {
    const width = Math.floor(plot.clientWidth);
    if (width > 0 && width !== chart.width) chart.setSize({ width, height: HEIGHT });
  });
  watch.observe(plot);
  return () => {
    watch.disconnect();
    charts.delete(chart);
    chart.destroy();
  };
}

/* There are no half tokens. */
function steps() {
  return Array.from({ length: 40 }, (_, power) => [1, 2, 5][power % 3] * 10 ** Math.floor(power / 3));
}

const tokens = document.querySelector("[data-chart=tokens]");
let forget = draw(tokens, "kind");
draw(document.querySelector("[data-chart=requests]"), "requests");
for (const choice of tokens.querySelectorAll("[name=stack]")) {
  choice.addEventListener("change", () => {
    forget();
    forget = draw(tokens, choice.value);
  });
}
