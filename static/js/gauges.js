/* The dashboard's cards: what each shows of a sample, when it worries, and its last minute as a line. */

import { binary, known, mean, percent, perSecond, short } from "./figures.js";
import { sparkline } from "./charts.js";

const SPARKLINE_PLACES = 30;

const share = ({ used_bytes: used, total_bytes: total }) => (total && used != null ? (used / total) * 100 : null);
const used = ({ used_bytes: used, total_bytes: total }) => `${binary(used).join(" ")} of ${binary(total).join(" ")}`;
const fullest = ({ volumes }) => [...volumes].sort((one, two) => share(two) - share(one))[0];

/* From which value on which word applies, the worst first; the worst is drawn as the threshold. */
const BUSY = [[90, "bad", "very high"], [75, "warn", "high"]];
const FULL = [[92, "bad", "almost full"], [80, "warn", "filling up"]];

function aboutGpus(gpus) {
  if (!gpus.length) return "none in this machine";
  const [first] = gpus;
  return [
    gpus.length > 1 ? `${gpus.length} GPUs` : first.name,
    first.memory_total_bytes && used({ used_bytes: first.memory_used_bytes, total_bytes: first.memory_total_bytes }),
    first.temperature_c && `${first.temperature_c} °C`,
    first.power_w && `${Math.round(first.power_w)} W`,
  ].filter(Boolean).join(", ");
}

/* `value` of a sample, `past` from the history's columns. */
const GAUGES = {
  cpu: {
    value: (data) => data.cpu.percent,
    past: (columns) => columns.cpu_percent,
    show: percent, top: 100, levels: () => BUSY,
    note: (data) => (data.cpu.cores.length ? `${data.cpu.cores.length} cores` : ""),
  },
  memory: {
    value: (data) => share(data.memory),
    past: (columns, total) => columns.memory_used_bytes.map((value) => share({ used_bytes: value, total_bytes: total })),
    show: percent, top: 100, levels: () => FULL,
    note: (data) => used(data.memory),
  },
  gpu: {
    value: (data) => mean(known(data.gpus.map((gpu) => gpu.percent))),
    past: (columns) => columns.gpu_percent,
    show: percent, top: 100, levels: () => [],
    note: (data) => aboutGpus(data.gpus),
  },
  load: {
    value: (data) => data.load[0],
    past: (columns) => columns.load_1,
    show: (value) => [short(value), ""],
    levels: ({ cpu: { cores } }) => (
      cores.length ? [[cores.length * 2, "bad", "overloaded"], [cores.length * 1.2, "warn", "queueing"]] : []
    ),
    note: (data) => `${short(data.load[1])} over 5 min, ${short(data.load[2])} over 15`,
  },
  "net-in": {
    value: (data) => data.network.in_bytes_s,
    past: (columns) => columns.network_in_bytes_s,
    show: perSecond, levels: () => [], note: () => "received",
  },
  "net-out": {
    value: (data) => data.network.out_bytes_s,
    past: (columns) => columns.network_out_bytes_s,
    show: perSecond, levels: () => [], note: () => "sent",
  },
  disk: {
    value: (data) => (data.disk.volumes.length ? share(fullest(data.disk)) : null),
    past: () => [],
    show: percent, top: 100, levels: () => FULL,
    note: (data) => (data.disk.volumes.length ? used(fullest(data.disk)) : ""),
  },
  tokens: {
    value: (data) => data.totals.generated_tokens_s,
    past: (columns) => columns.generated_tokens_s,
    show: (value) => [short(value), "tokens/s"], levels: () => [],
    note: ({ totals: { requests_processing: running, requests_deferred: waiting } }) => (
      running == null ? "" : `${running} running, ${waiting ?? 0} waiting`
    ),
  },
};

export class Gauge {
  constructor(element) {
    this.element = element;
    this.about = GAUGES[element.dataset.metric];
    this.recent = [];
  }

  /* The minute before now, from the history's columns. */
  remember(columns, memoryTotal) {
    this.recent = this.about.past(columns, memoryTotal);
  }

  show(data) {
    const value = this.about.value(data);
    const levels = this.about.levels(data);
    const [, level, word] = (value != null && levels.find(([from]) => value >= from)) || [];
    const [number, unit] = value == null ? ["–", ""] : this.about.show(value);
    this.element.dataset.value = value ?? "";
    this.element.dataset.level = level ?? "";
    this.part("number").textContent = number;
    this.part("unit").textContent = unit;
    this.part("note").textContent = this.part("note").title = this.about.note(data) || "\u00a0";
    this.part("level").textContent = word ?? "";
    this.part("level").dataset.tone = level ?? "";
    this.part("level").hidden = !level;
    this.recent = [...this.recent, value].slice(-SPARKLINE_PLACES);
    sparkline(this.element.querySelector("svg"), this.recent, SPARKLINE_PLACES, this.about.top, levels[0]?.[0]);
  }

  part(name) {
    return this.element.querySelector(`[data-part=${name}]`);
  }
}
