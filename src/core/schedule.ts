const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `90s`, `5m`, `7d` … in milliseconds, or undefined if the text is no such duration. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d{1,9})(ms|s|m|h|d)$/.exec(text.trim());
  return match ? Number(match[1]) * UNITS[match[2] as keyof typeof UNITS] : undefined;
}

/** `5s,1m,5m` as delays in milliseconds, or undefined if one of them is no duration or there are none or over 50. */
export function parseSchedule(text: string): number[] | undefined {
  const delays = text.split(",").map(parseDuration);
  if (delays.length > 50 || delays.some((delay) => delay === undefined)) return undefined;
  return delays as number[];
}

/** The longest that the retries can take, at the upper end of the jitter. */
export function longestScheduleMs(schedule: readonly number[]): number {
  return schedule.reduce((sum, delay) => sum + delay, 0) * MAX_JITTER;
}

/** A delay is stretched by a random factor between 1 and this: spread out, and never early. */
export const MAX_JITTER = 1.2;
