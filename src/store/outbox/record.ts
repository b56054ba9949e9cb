import type { Sql } from "postgres";
import { type Outcome, type PhaseDurations, toOutcomeCode } from "../../core/attempt.ts";
import { toEndReasonCode } from "../../core/delivery.ts";
import type { Uuid } from "../../core/ids.ts";
import type { Decision } from "../../core/retry-policy.ts";
import { toArrayText } from "../array-text.ts";
import type { BigintText } from "./claim.ts";
import type { Promoted } from "./promote.ts";

/** What one attempt met, and what follows from it. */
export type AttemptRecord = {
  readonly subscriptionKey: number;
  readonly eventKey: Uuid;
  readonly leaseToken: bigint;
  readonly userKey: BigintText | null;
  readonly tenantKey: number;
  readonly number: number;
  /** By the database's clock, in milliseconds since 1970. */
  readonly startedAtMs: number;
  readonly durationMs: number;
  readonly phases: PhaseDurations;
  readonly outcome: Outcome;
  readonly decision: Decision;
  /** What everybody outside calls it; for the log, and not stored. */
  readonly ids?: { readonly deliveryId: string; readonly eventId: string; readonly subscriptionId: string };
};

/** What the records changed beside their own deliveries. */
export type RecordResult = Promoted & {
  readonly atMs: number;
  /** For each record whether its lease had moved on. */
  readonly stale: readonly boolean[];
  /** Lanes of failed deliveries that ended because their user leaves. */
  readonly superseded: readonly number[];
};

/**
 * Writes attempts and what follows from each in one call of `nuncio.record_attempts`, under the tokens of their leases.
 * Where the lease has moved on, the attempt is kept, marked stale, and nothing else changes. Where a delivery of a user
 * ends, the next one of that user comes due in the same transaction.
 *
 * If we crash before this returns, each row is as it was under its lease, and is due again when that ends.
 */
export async function recordAttempts(sql: Sql, records: readonly AttemptRecord[]): Promise<RecordResult> {
  const [result] = await sql<{ stale: number[]; promoted: number[]; superseded: number[]; at_ms: number }[]>`
    SELECT stale, promoted, superseded, date_part('epoch', now()) * 1000 AS at_ms FROM nuncio.record_attempts(
      ${toArrayText(records, (record) => record.subscriptionKey)}::integer[],
      ${toArrayText(records, (record) => record.eventKey)}::uuid[],
      ${toArrayText(records, (record) => record.leaseToken)}::bigint[],
      ${toArrayText(records, (record) => record.userKey)}::bigint[],
      ${toArrayText(records, (record) => record.tenantKey)}::integer[],
      ${toArrayText(records, (record) => record.number)}::smallint[],
      ${toArrayText(records, (record) => record.startedAtMs)}::double precision[],
      ${toArrayText(records, (record) => Math.round(record.durationMs))}::integer[],
      ${toArrayText(records, (record) => toOutcomeCode(record.outcome.kind))}::smallint[],
      ${toArrayText(records, (record) => record.outcome.httpStatus)}::smallint[],
      ${toArrayText(records, (record) => toWholeMs(record.phases.dns))}::integer[],
      ${toArrayText(records, (record) => toWholeMs(record.phases.connect))}::integer[],
      ${toArrayText(records, (record) => toWholeMs(record.phases.first_byte))}::integer[],
      ${toArrayText(records, (record) => toWholeMs(record.phases.body))}::integer[],
      ${toArrayText(records, ({ decision }) => (decision.kind === "retry" ? decision.delayMs : null))}::bigint[],
      ${toArrayText(records, ({ decision }) => (decision.kind === "dead_letter" ? toEndReasonCode(decision.reason) : null))}::smallint[],
      ${records.map(({ outcome }) => ("detail" in outcome ? outcome.detail : null))}::text[],
      ${records.map(({ outcome }) => ("excerpt" in outcome ? toStorableText(outcome.excerpt) : null))}::text[])`;
  if (!result) throw new Error("nuncio.record_attempts returned no row");
  const stale = new Array<boolean>(records.length).fill(false);
  for (const place of result.stale) stale[place - 1] = true;
  return { stale, promoted: result.promoted, atMs: result.at_ms, superseded: result.superseded };
}

export function toWholeMs(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : Math.round(ms);
}

/** Postgres stores any Unicode text but U+0000. */
export function toStorableText(text: string): string {
  return text.replaceAll("\0", "\uFFFD");
}
