// Numbers and times for people; what is not known, or no number, is a dash.

const UNKNOWN = "\u2013";
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const calendar = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

const isNumber = (value) => typeof value === "number"; // what a device says of itself may be anything
export const whole = (value) => (!isNumber(value) ? UNKNOWN : Math.abs(value) < 1e5 ? plain.format(value) : short.format(value));
export const rate = (value) => (value == null ? UNKNOWN : value > 0 && value < 10 ? value.toFixed(1) : whole(value));
export const fixed = (value, digits) => (!isNumber(value) ? UNKNOWN : value.toFixed(digits));
export const share = (value) => `${(100 * value).toFixed(Math.abs(value) < 0.0995 ? 1 : 0)}\u00a0%`;
export const counted = (value, name) => `${whole(value)} ${name}${value === 1 ? "" : "s"}`;
export const at = (seconds) => (seconds ? clock.format(seconds * 1000) : UNKNOWN);
// With the date where that is not today's.
export const day = (seconds) => {
  if (!seconds) return UNKNOWN;
  const then = new Date(seconds * 1000);
  return then.toDateString() === new Date().toDateString() ? clock.format(then) : `${calendar.format(then)} ${clock.format(then)}`;
};
export const signed = (value) => `${value < 0 ? "\u2212" : "+"}${share(Math.abs(value))}`;
export const millis = (ms) => (ms == null ? UNKNOWN : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
export const measured = (value, unit) =>
  !isNumber(value) ? UNKNOWN : `${+(+value.toFixed(9)).toPrecision(4)}${unit ? `\u00a0${unit}` : ""}`;

export const STATES = {
  alarm: { name: "Alarm", means: "anomalies again and again in the last minutes" },
  noted: { name: "Noted", means: "a few anomalies in the last minutes: each device is allowed some" },
  silent: { name: "Silent", means: "sends nothing any more" },
  learning: { name: "Learning", means: "too few readings to judge" },
  ok: { name: "Well", means: "as expected" },
};

export function stateInWords(state, alarms) {
  if (!alarms) return STATES[state].name.toLowerCase();
  return `${alarms < 100 ? alarms : "99+"} ${alarms === 1 ? "anomaly" : "anomalies"} in the last minutes`;
}

export const inOrder = new Intl.Collator("en", { numeric: true }).compare;

// What all names begin with, up to and with the last sign that is neither letter nor digit: "mote-" of mote-1, mote-12.
export function sharedBeginning(names) {
  let shared = names[0] ?? "";
  for (const name of names) while (!name.startsWith(shared)) shared = shared.slice(0, -1);
  const end = Math.max(...["-", "_", ".", "/", " "].map((sign) => shared.lastIndexOf(sign)));
  return names.some((name) => name.length === end + 1) ? "" : shared.slice(0, end + 1);
}
