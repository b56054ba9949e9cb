/** No receiver silences its subscription for longer than this at a time. */
export const LONGEST_HOLD_MS = 3_600_000;

/** Three spellings of RFC 9110 5.6.7: the one in use, and two that a recipient must still read. */
const HTTP_DATE = /^(Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? /;

/**
 * For how long a receiver that answered 429 or 503 asks for silence (RFC 9110 10.2.3), in milliseconds, at most an hour.
 * Undefined for no wish, for rubbish, and for a time that has passed: Retry-After only ever delays.
 */
export function parseRetryAfter(
  httpStatus: number | undefined,
  value: string | undefined,
  nowMs: number,
): number | undefined {
  if (value === undefined || (httpStatus !== 429 && httpStatus !== 503)) return undefined;
  const text = value.trim();
  const ms = /^\d{1,10}$/.test(text)
    ? Number(text) * 1000
    : HTTP_DATE.test(text)
      ? Date.parse(text) - nowMs
      : Number.NaN;
  return ms > 0 ? Math.min(ms, LONGEST_HOLD_MS) : undefined;
}
