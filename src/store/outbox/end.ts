import type { Sql } from "postgres";
import { type EndReason, LOST_CLAIMS_ENDED, toEndReasonCode } from "../../core/delivery.ts";
import type { ClaimedDelivery } from "./claim.ts";

/** Ends claimed deliveries without an attempt, as dead letters with a reason, where the lease is still ours. */
export async function endDeliveries(
  sql: Sql,
  claimed: readonly Pick<ClaimedDelivery, "subscriptionKey" | "eventKey" | "leaseToken">[],
  reason: EndReason,
): Promise<number> {
  const ended = await sql`
    WITH gone AS (
      DELETE FROM nuncio.outbox q
      USING unnest(
        ${claimed.map((delivery) => delivery.subscriptionKey)}::integer[],
        ${claimed.map((delivery) => delivery.eventKey)}::uuid[],
        ${claimed.map((delivery) => delivery.leaseToken.toString())}::bigint[]
      ) AS c (subscription_key, event_key, lease_token)
      WHERE q.subscription_key = c.subscription_key AND q.event_key = c.event_key AND q.lease_token = c.lease_token
      RETURNING q.event_key, q.tenant_key, q.subscription_key, q.attempt - 1 AS attempt
    )
    INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
    SELECT event_key, tenant_key, subscription_key, attempt, ${toEndReasonCode(reason)}::smallint FROM gone
    ON CONFLICT (subscription_key, event_key) DO UPDATE
      SET ended_at = excluded.ended_at, attempt = excluded.attempt, end_reason = excluded.end_reason`;
  return ended.count;
}

/** Ends up to `limit` deliveries whose last ten claims ended without a record. Served by `outbox_quarantined`. */
export async function endLostDeliveries(sql: Sql, limit: number): Promise<number> {
  const ended = await sql`
    WITH lost AS (
      SELECT q.ctid AS row FROM nuncio.outbox q
      WHERE q.lost_claims >= 2 AND q.lost_claims + (q.lease_token IS NOT NULL)::integer >= ${LOST_CLAIMS_ENDED}::integer
        AND q.next_at <= now()
      LIMIT ${limit}::integer
      FOR UPDATE SKIP LOCKED
    ), gone AS (
      DELETE FROM nuncio.outbox q USING lost l WHERE q.ctid = l.row
      RETURNING q.event_key, q.tenant_key, q.subscription_key, q.attempt
    )
    INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
    SELECT event_key, tenant_key, subscription_key, attempt, ${toEndReasonCode("WORKER_LOST")}::smallint FROM gone
    ON CONFLICT (subscription_key, event_key) DO UPDATE
      SET ended_at = excluded.ended_at, attempt = excluded.attempt, end_reason = excluded.end_reason`;
  return ended.count;
}

/**
 * Cancels up to `limit` deliveries of a deleted subscription. Rows under a live lease are left to their worker: its
 * record ends them, or its lease does.
 */
export async function cancelDeliveriesOfDeletedSubscription(
  sql: Sql,
  subscriptionKey: number,
  limit: number,
): Promise<number> {
  const cancelled = await sql`
    WITH orphan AS (
      SELECT q.ctid AS row FROM nuncio.outbox q
      JOIN nuncio.webhook_subscriptions s ON s.subscription_key = q.subscription_key AND s.deleted_at IS NOT NULL
      WHERE q.subscription_key = ${subscriptionKey}::integer AND (q.lease_token IS NULL OR q.lease_expires_at <= now())
      LIMIT ${limit}::integer
      FOR UPDATE OF q SKIP LOCKED
    ), gone AS (
      DELETE FROM nuncio.outbox q USING orphan o WHERE q.ctid = o.row
      RETURNING q.event_key, q.tenant_key, q.subscription_key, q.attempt
    )
    INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
    SELECT event_key, tenant_key, subscription_key, attempt, ${toEndReasonCode("SUBSCRIPTION_DELETED")}::smallint FROM gone
    ON CONFLICT (subscription_key, event_key) DO UPDATE
      SET ended_at = excluded.ended_at, attempt = excluded.attempt, end_reason = excluded.end_reason`;
  return cancelled.count;
}
