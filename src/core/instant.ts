/** A point in time as protobuf carries it: whole seconds since 1970 and 0–999,999,999 nanoseconds. */
export type Instant = { readonly seconds: bigint; readonly nanos: number };

const YEAR_ONE = -62_135_596_800n;
const LAST_SECOND_OF_9999 = 253_402_300_799n;

/** Whether protobuf's Timestamp and RFC 3339 can both express it (years 1–9999). */
export function isValidInstant({ seconds, nanos }: Instant): boolean {
  return seconds >= YEAR_ONE && seconds <= LAST_SECOND_OF_9999 && nanos >= 0 && nanos <= 999_999_999;
}

/** RFC 3339, UTC, three digits of milliseconds; finer digits are cut, never rounded up into the future. */
export function toRfc3339Millis(instant: Instant): string {
  return new Date(toEpochMs(instant)).toISOString();
}

export function toEpochMs({ seconds, nanos }: Instant): number {
  return Number(seconds) * 1000 + Math.floor(nanos / 1_000_000);
}

/** The first whole millisecond at or after: what compares rightly with times that are whole milliseconds. */
export function toNextEpochMs({ seconds, nanos }: Instant): number {
  return Number(seconds) * 1000 + Math.ceil(nanos / 1_000_000);
}

export function toInstant(epochMs: number): Instant {
  const seconds = Math.floor(epochMs / 1000);
  return { seconds: BigInt(seconds), nanos: Math.round((epochMs - seconds * 1000) * 1_000_000) };
}

/** Every digit, in one spelling per instant, for hashing. */
export function toCanonicalText({ seconds, nanos }: Instant): string {
  return `${seconds}.${String(nanos).padStart(9, "0")}`;
}
