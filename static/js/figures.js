/* Numbers as a person reads them; a number with its unit is [text, unit]. */

/* Three digits say enough. */
export function short(value) {
  if (Math.abs(value) >= 99.95) return String(Math.round(value));
  const factor = Math.abs(value) >= 9.995 ? 10 : 100;
  return String(Math.round(value * factor) / factor);
}

export function percent(value) {
  return [value >= 9.95 ? String(Math.round(value)) : String(Math.round(value * 10) / 10), "%"];
}

/* Bytes in binary units. */
export function binary(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return [unit ? short(value) : String(Math.round(value)), units[unit]];
}

export function perSecond(value) {
  const [number, unit] = binary(value);
  return [number, `${unit}/s`];
}

export function known(values) {
  return values.filter((value) => value != null);
}

export function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}
