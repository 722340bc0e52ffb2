/* Charts over time, drawn by uPlot (a global from its own script): one time axis and one cursor for all of them, colours
   from the page's custom properties, and what the cursor points at in words beside the title. */

/* global uPlot */

const together = uPlot.sync("dashboard");
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const exactClock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});
const STEPS = {
  bytes: Array.from({ length: 50 }, (_, power) => 2 ** power),
  whole: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
};
const charts = new Set();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function redrawAll() {
  for (const chart of charts) chart.redraw(false);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
new MutationObserver(redrawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });

/* A chart in `figure` of the last `span` seconds with the lines `series` ([name, column, tint 1 to 5]).
   `show` makes words of a value; `top()` is the end of the scale, by default a little above the highest value; `steps`
   (bytes, whole) are between the lines of the grid. Returns a function that draws a history. */
export function timeChart(figure, { series, show, top, steps, span }) {
  const plot = figure.querySelector("[data-part=plot]");
  const readout = figure.querySelector("[data-part=readout]");
  const values = series.map(([name, , tint]) => {
    const key = document.createElement("span");
    key.className = "series";
    key.dataset.tint = tint;
    key.textContent = series.length > 1 ? name : "";
    const value = document.createElement("b");
    readout.append(key, value);
    return value;
  });
  const moment = document.createElement("span");
  moment.className = "chart-moment";
  readout.append(moment);

  const axis = {
    stroke: () => colour("--ink-3"),
    font: `12px ${colour("--sans")}`,
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { stroke: () => colour("--line"), width: 1, size: 4 },
  };
  const chart = new uPlot(
    {
      width: 300,
      height: 160,
      legend: { show: false },
      cursor: { sync: { key: together.key }, drag: { x: false, y: false }, y: false, points: { size: 7 } },
      scales: {
        x: { time: true, range: (_, first, last) => [last - span, last] },
        y: { range: (_, low, high) => [0, (top && top()) || (high || 1) * 1.15] },
      },
      axes: [
        { ...axis, space: 64, size: 28, values: (_, splits) => splits.map((at) => clock.format(at * 1000)) },
        {
          ...axis, space: 36, size: 64, values: (_, splits) => splits.map(show),
          ...(steps && { incrs: STEPS[steps] }),
        },
      ],
      series: [
        {},
        ...series.map(([name, , tint]) => ({
          label: name,
          stroke: () => colour(`--series-${tint}`),
          width: 1.5,
          points: { show: false },
        })),
      ],
      hooks: { setCursor: [() => say()] },
    },
    [[], ...series.map(() => [])],
    plot,
  );
  charts.add(chart);
  new ResizeObserver(() => {
    const width = Math.floor(plot.clientWidth);
    if (width > 0 && width !== chart.width) chart.setSize({ width, height: 160 });
  }).observe(plot);

  function say() {
    const times = chart.data[0];
    const at = chart.cursor.idx ?? times.length - 1;
    values.forEach((value, number) => {
      const figure = chart.data[number + 1][at];
      value.textContent = figure == null ? "–" : show(figure);
    });
    moment.textContent = chart.cursor.idx == null || !times.length ? "" : exactClock.format(times[at] * 1000);
  }

  return (history) => {
    chart.setData([history.at, ...series.map(([, column]) => history.columns[column])]);
    say();
  };
}

/* `values` (null for a gap) as a line in the SVG that ends at its right edge, from 0 to `top`. */
export function sparkline(svg, values, places, top, threshold) {
  const scale = top || Math.max(...values, 0) * 1.25 || 1;
  const step = 60 / (places - 1);
  const y = (value) => (100 - (Math.min(value, scale) / scale) * 96).toFixed(1);
  let line = "";
  let area = "";
  let run = [];
  const end = () => {
    if (run.length) {
      line += `M${run.join("L")}`;
      area += `M${run[0].split(" ")[0]} 100L${run.join("L")}L${run.at(-1).split(" ")[0]} 100Z`;
    }
    run = [];
  };
  values.slice(-places).forEach((value, number, shown) => {
    if (value == null) return end();
    run.push(`${((places - shown.length + number) * step).toFixed(1)} ${y(value)}`);
  });
  end();
  svg.querySelector(".sparkline-line").setAttribute("d", line);
  svg.querySelector(".sparkline-area").setAttribute("d", area);
  const limit = svg.querySelector(".sparkline-threshold");
  limit.toggleAttribute("hidden", !threshold);
  if (threshold) {
    limit.setAttribute("y1", y(threshold));
    limit.setAttribute("y2", y(threshold));
  }
}
