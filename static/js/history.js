/* Columns over time that grow at the end, as the server's history makes them. */

import { known, mean } from "./figures.js";

/* Where a sample's value stands among the columns. */
const COLUMNS = {
  cpu_percent: (data) => data.cpu.percent,
  memory_used_bytes: (data) => data.memory.used_bytes,
  load_1: (data) => data.load[0],
  network_in_bytes_s: (data) => data.network.in_bytes_s,
  network_out_bytes_s: (data) => data.network.out_bytes_s,
  gpu_percent: (data) => mean(known(data.gpus.map((gpu) => gpu.percent))),
  generated_tokens_s: (data) => data.totals.generated_tokens_s,
  prompt_tokens_s: (data) => data.totals.prompt_tokens_s,
  requests_processing: (data) => data.totals.requests_processing,
  requests_deferred: (data) => data.totals.requests_deferred,
};

export class History {
  /* `span`: how many seconds are kept. */
  constructor({ step_s: step, gap_s: gap, at, columns }, span) {
    Object.assign(this, { step, gap, at, columns, span, samplesInStep: 1 });
  }

  get last() {
    return this.at.at(-1) ?? -Infinity;
  }

  /* True when more than a step or two lie between what is known and this time (in seconds). */
  misses(at) {
    return this.at.length > 0 && at - this.last > this.gap;
  }

  /* A sample of this time. Samples of one step become their mean; a gap is marked by a point without values. */
  add(at, data) {
    const step = Math.floor(at / this.step) * this.step;
    if (step === this.last) return this.#blend(data);
    if (step < this.last) return;
    if (this.misses(step)) this.#push(this.last + this.step, () => null);
    this.#push(step, (read) => read(data));
    this.samplesInStep = 1;
    const kept = this.at.findIndex((time) => time > step - this.span);
    for (const column of [this.at, ...Object.values(this.columns)]) column.splice(0, kept);
  }

  #push(at, valueOf) {
    this.at.push(at);
    for (const [name, read] of Object.entries(COLUMNS)) this.columns[name].push(valueOf(read));
  }

  #blend(data) {
    this.samplesInStep += 1;
    for (const [name, read] of Object.entries(COLUMNS)) {
      const column = this.columns[name];
      const before = column.at(-1);
      const value = read(data);
      if (value == null) continue;
      column[column.length - 1] = before == null ? value : before + (value - before) / this.samplesInStep;
    }
  }
}
