import type { Sql } from "postgres";
import { type Outcome, type PhaseDurations, toOutcomeCode } from "../../core/attempt.ts";
import { toEndReasonCode } from "../../core/delivery.ts";
import type { Uuid } from "../../core/ids.ts";
import type { Decision } from "../../core/retry-policy.ts";

/** What one attempt met, and what follows from it. */
export type AttemptRecord = {
  readonly subscriptionKey: number;
  readonly eventKey: Uuid;
  readonly leaseToken: bigint;
  readonly tenantKey: number;
  readonly number: number;
  readonly startedAt: Date;
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
 * Rows are locked in key order, so that two records cannot deadlock; found by the primary key.
 */
export async function recordAttempts(sql: Sql, records: readonly AttemptRecord[]): Promise<boolean[]> {
  const rows = await sql<{ place: string; stale: boolean }[]>`
    WITH attempt AS MATERIALIZED (
      SELECT * FROM unnest(
        ${records.map((record) => record.subscriptionKey)}::integer[],
        ${records.map((record) => record.eventKey)}::uuid[],
        ${records.map((record) => record.leaseToken.toString())}::bigint[],
        ${records.map((record) => record.tenantKey)}::integer[],
        ${records.map((record) => record.number)}::smallint[],
        ${records.map((record) => record.startedAt.toISOString())}::timestamptz[],
        ${records.map((record) => Math.round(record.durationMs))}::integer[],
        ${records.map((record) => toOutcomeCode(record.outcome.kind))}::smallint[],
        ${records.map((record) => record.outcome.httpStatus ?? null)}::smallint[],
        ${records.map((record) => roundOrNull(record.phases.dns))}::integer[],
        ${records.map((record) => roundOrNull(record.phases.connect))}::integer[],
        ${records.map((record) => roundOrNull(record.phases.first_byte))}::integer[],
        ${records.map((record) => roundOrNull(record.phases.body))}::integer[],
        ${records.map(({ outcome }) => ("detail" in outcome ? outcome.detail : null))}::text[],
        ${records.map(({ outcome }) => ("excerpt" in outcome ? toStorableText(outcome.excerpt) : null))}::text[],
        ${records.map(({ decision }) => (decision.kind === "retry" ? decision.delayMs : null))}::bigint[],
        ${records.map(({ decision }) => (decision.kind === "dead_letter" ? toEndReasonCode(decision.reason) : null))}::smallint[]
      ) WITH ORDINALITY AS a (subscription_key, event_key, lease_token, tenant_key, number, started_at, duration_ms,
        outcome, http_status, dns_ms, connect_ms, first_byte_ms, body_ms, error_detail, response_excerpt, delay_ms,
        end_reason, place)
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
    ), kept AS (
      INSERT INTO nuncio.delivery_attempts (event_key, started_at, tenant_key, subscription_key, duration_ms, number,
        outcome, http_status, stale, dns_ms, connect_ms, first_byte_ms, body_ms, error_detail, response_excerpt)
      SELECT a.event_key, a.started_at, a.tenant_key, a.subscription_key, a.duration_ms, a.number, a.outcome,
        a.http_status, h.place IS NULL, a.dns_ms, a.connect_ms, a.first_byte_ms, a.body_ms, a.error_detail,
        a.response_excerpt
      FROM attempt a LEFT JOIN held h ON h.place = a.place
    )
    SELECT a.place, h.place IS NULL AS stale FROM attempt a LEFT JOIN held h ON h.place = a.place`;
  const stale = new Array<boolean>(records.length).fill(true);
  for (const row of rows) stale[Number(row.place) - 1] = row.stale;
  return stale;
}

function roundOrNull(ms: number | undefined): number | null {
  return ms === undefined ? null : Math.round(ms);
}

/** Postgres stores any Unicode text but U+0000. */
function toStorableText(text: string): string {
  return text.replaceAll("\0", "\uFFFD");
}
