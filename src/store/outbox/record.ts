import type { Sql } from "postgres";
import { type Outcome, type PhaseDurations, toOutcomeCode } from "../../core/attempt.ts";
import { toEndReasonCode } from "../../core/delivery.ts";
import type { Uuid } from "../../core/ids.ts";
import type { Decision } from "../../core/retry-policy.ts";
import { toArrayText } from "../array-text.ts";

/** What one attempt met, and what follows from it. */
export type AttemptRecord = {
  readonly subscriptionKey: number;
  readonly eventKey: Uuid;
  readonly leaseToken: bigint;
  readonly tenantKey: number;
  readonly number: number;
  /** By the database's clock, in milliseconds since 1970. */
  readonly startedAtMs: number;
  readonly durationMs: number;
  readonly phases: PhaseDurations;
  readonly outcome: Outcome;
  readonly decision: Decision;
};

/**
 * Writes attempts and what follows from each in one statement, under the tokens of their leases, and returns for each
 * whether it was stale. Where the lease has moved on, the attempt is kept, marked stale, and nothing else changes.
 *
 * If we crash before this returns, each row is as it was under its lease, and is due again when that ends.
 *
 * Rows are found by the primary key and locked in its order, ours or not: a row whose token turns out to be another's
 * after waiting for it stays locked until the end, so that records in their own order would deadlock.
 */
export async function recordAttempts(sql: Sql, records: readonly AttemptRecord[]): Promise<boolean[]> {
  const rows = await sql<{ place: number }[]>`
    WITH attempt AS MATERIALIZED (
      SELECT * FROM unnest(
        ${toArrayText(records, (record) => record.subscriptionKey)}::integer[],
        ${toArrayText(records, (record) => record.eventKey)}::uuid[],
        ${toArrayText(records, (record) => record.leaseToken)}::bigint[],
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
        ${records.map(({ outcome }) => ("excerpt" in outcome ? toStorableText(outcome.excerpt) : null))}::text[]
      ) WITH ORDINALITY AS a (subscription_key, event_key, lease_token, tenant_key, number, started_ms, duration_ms,
        outcome, http_status, dns_ms, connect_ms, first_byte_ms, body_ms, delay_ms, end_reason, error_detail,
        response_excerpt, place)
    ), held AS MATERIALIZED (
      SELECT q.ctid AS row, q.attempt, a.place, a.subscription_key, a.event_key, a.tenant_key, a.delay_ms, a.end_reason
      FROM attempt a
      JOIN nuncio.outbox q ON q.subscription_key = a.subscription_key AND q.event_key = a.event_key
        AND q.lease_token = a.lease_token
      ORDER BY q.subscription_key, q.event_key
      FOR UPDATE OF q
    ), ended AS (
      DELETE FROM nuncio.outbox q USING held h WHERE q.ctid = h.row AND h.delay_ms IS NULL
    ), retried AS (
      UPDATE nuncio.outbox q
      SET next_at = now() + h.delay_ms * interval '1 millisecond', failures = q.failures + 1, lost_claims = 0,
        lease_token = NULL, lease_expires_at = NULL
      FROM held h WHERE q.ctid = h.row AND h.delay_ms IS NOT NULL
    ), given_up AS (
      INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
      SELECT h.event_key, h.tenant_key, h.subscription_key, h.attempt, h.end_reason
      FROM held h WHERE h.end_reason IS NOT NULL
      ON CONFLICT (subscription_key, event_key) DO UPDATE
        SET ended_at = excluded.ended_at, attempt = excluded.attempt, end_reason = excluded.end_reason
    ), stale AS MATERIALIZED (
      SELECT a.place FROM attempt a
      WHERE a.place NOT IN (SELECT h.place FROM held h)
    ), kept AS (
      INSERT INTO nuncio.delivery_attempts (event_key, started_at, tenant_key, subscription_key, duration_ms, number,
        outcome, http_status, stale, dns_ms, connect_ms, first_byte_ms, body_ms, error_detail, response_excerpt)
      SELECT a.event_key, to_timestamp(a.started_ms / 1000), a.tenant_key, a.subscription_key, a.duration_ms, a.number,
        a.outcome, a.http_status, a.place IN (SELECT s.place FROM stale s), a.dns_ms, a.connect_ms, a.first_byte_ms,
        a.body_ms, a.error_detail, a.response_excerpt
      FROM attempt a
    )
    SELECT place::integer FROM stale`;
  const stale = new Array<boolean>(records.length).fill(false);
  for (const { place } of rows) stale[place - 1] = true;
  return stale;
}

function toWholeMs(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : Math.round(ms);
}

/** Postgres stores any Unicode text but U+0000. */
function toStorableText(text: string): string {
  return text.replaceAll("\0", "\uFFFD");
}
