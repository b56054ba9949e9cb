import type { DescEnum } from "@bufbuild/protobuf";
import {
  type Duration,
  durationFromMs,
  durationMs,
  type Timestamp,
  timestampDate,
  timestampFromMs,
} from "@bufbuild/protobuf/wkt";
import { InvalidArgumentError } from "commander";
import { EventTypeSchema } from "../../gen/nuncio/v1/event_pb.ts";
import { parseDuration } from "../core/schedule.ts";

// What a person types and reads, and what the contract calls it.

/** `dead-lettered` for DELIVERY_STATE_DEAD_LETTERED, `user.created` for EVENT_TYPE_USER_CREATED; "" for what is not set. */
export function toWord(schema: DescEnum, number: number): string {
  if (number === 0) return "";
  const name = schema.values.find((value) => value.number === number)?.localName ?? String(number);
  return name.toLowerCase().replaceAll("_", schema === EventTypeSchema ? "." : "-");
}

export function wordsOf(schema: DescEnum): string[] {
  return schema.values.filter(({ number }) => number !== 0).map(({ number }) => toWord(schema, number));
}

/** For an option that takes one of them. */
export function wordParser<T extends number>(schema: DescEnum): (word: string) => T {
  return (word) => {
    const value = schema.values.find(({ number }) => number !== 0 && toWord(schema, number) === word);
    if (value === undefined) throw new InvalidArgumentError(`Expected one of ${wordsOf(schema).join(", ")}.`);
    return value.number as T;
  };
}

/** For an option that may be given several times, or once with commas. */
export function collecting<T>(parse: (word: string) => T): (text: string, before: T[] | undefined) => T[] {
  return (text, before) => [...(before ?? []), ...text.split(",").map((word) => parse(word.trim()))];
}

/** RFC 3339, or a date alone, which begins in UTC. Not what `Date.parse` takes beside: to it "12" is a month. */
const TIME_PATTERN = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d))?$/;
const LONGEST_MS = 3_650 * 86_400_000;

/** `90m` is that long ago; anything else a time with its zone. */
export function parseTime(text: string): Timestamp {
  const ago = parseDuration(text);
  const ms = ago === undefined ? (TIME_PATTERN.test(text) ? Date.parse(text) : Number.NaN) : Date.now() - ago;
  if (!(ms >= 0) || (ago ?? 0) > LONGEST_MS) {
    throw new InvalidArgumentError("Expected how long ago (90m, 2d) or a time (2026-03-01T04:00:00Z).");
  }
  return timestampFromMs(ms);
}

/** `90s`, `24h`. */
export function parseLength(text: string): Duration {
  const ms = parseDuration(text);
  if (ms === undefined || ms > LONGEST_MS)
    throw new InvalidArgumentError("Expected a duration such as 90s, 5m, 24h, 7d.");
  return durationFromMs(ms);
}

export function parseWholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("Expected a whole number.");
  return Number(text);
}

/** To the second, in UTC: what is compared with logs. */
export function formatTime(time: Timestamp | undefined): string {
  return time === undefined
    ? ""
    : timestampDate(time)
        .toISOString()
        .replace(/\.\d+Z$/, "Z");
}

export function formatDuration(duration: Duration | undefined): string {
  if (duration === undefined) return "";
  return `${Math.round(durationMs(duration))} ms`;
}
