// Numbers, times and durations as people read them. Pure.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

export function count(value) {
  return whole.format(value);
}

export function rate(value) {
  return value < 10 && value > 0 ? tenths.format(value) : whole.format(value);
}

/** Large counts in few characters, for narrow places. */
export function short(value) {
  if (value < 10_000) return count(value);
  if (value < 1_000_000) return `${tenths.format(value / 1000)}k`;
  return `${tenths.format(value / 1_000_000)}M`;
}

/** [number, unit] of a duration in ms. */
export function ms(value) {
  if (value < 1000) return [whole.format(value), "ms"];
  if (value < 100_000) return [tenths.format(value / 1000), "s"];
  return [whole.format(value / 60_000), "min"];
}

export function duration(seconds) {
  if (seconds < 90) return `${whole.format(seconds)} s`;
  if (seconds < 5400) return `${whole.format(seconds / 60)} min`;
  if (seconds < 172_800) return `${tenths.format(seconds / 3600)} h`;
  return `${whole.format(seconds / 86_400)} days`;
}

export function percent(share) {
  return whole.format(100 * share);
}

export function clock(milliseconds) {
  return new Date(milliseconds).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

export function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}
