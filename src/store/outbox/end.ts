import type { PendingQuery, Row, Sql, TransactionSql } from "postgres";
import { type EndReason, LOST_CLAIMS_ENDED, toEndReasonCode } from "../../core/delivery.ts";
import type { Uuid } from "../../core/ids.ts";
import { toArrayText } from "../array-text.ts";
import type { BigintText, ClaimedDelivery } from "./claim.ts";
import { isUnleased } from "./held.ts";
import { lockUsers, type Promoted, promoteFollowers } from "./promote.ts";

/** How many deliveries have ended, and where that made the next one of a user due. */
export type Ended = Promoted & { readonly count: number };

const NONE_ENDED: Ended = { count: 0, promoted: [], atMs: undefined };

/** A condition on the outbox row `q`. */
type Condition = (sql: Sql | TransactionSql) => PendingQuery<Row[]>;

/** A row that may have to end. */
type Candidate = {
  readonly subscription_key: number;
  readonly event_key: Uuid;
  readonly user_key: BigintText | null;
  /** Whose lease it must be; null where the condition says all. */
  readonly lease_token: BigintText | null;
};

/** Ends claimed deliveries without an attempt, as dead letters with a reason, where the lease is still ours. */
export async function endDeliveries(sql: Sql, claimed: readonly ClaimedDelivery[], reason: EndReason): Promise<Ended> {
  const candidates = claimed.map((delivery) => ({
    subscription_key: delivery.subscriptionKey,
    event_key: delivery.eventKey,
    user_key: delivery.userKey,
    lease_token: String(delivery.leaseToken) as BigintText,
  }));
  // The claim has counted an attempt that was never made.
  return end(sql, reason, candidates, (tx) => tx`q.lease_token = c.lease_token`, 1);
}

/** Ends up to `limit` deliveries whose last ten claims ended without a record. Served by `outbox_quarantined`. */
export async function endLostDeliveries(sql: Sql, limit: number): Promise<Ended> {
  return endAll(
    sql,
    "WORKER_LOST",
    (tx) => tx`
      q.lost_claims >= 2 AND q.next_at <= now() AND ${isUnleased(tx)}
      AND q.lost_claims + (q.lease_token IS NOT NULL)::integer >= ${LOST_CLAIMS_ENDED}::integer`,
    limit,
  );
}

/**
 * Ends up to `limit` deliveries whose time is up, whatever held them: a pause, a full lane, a place behind another, a
 * receiver that never worked. Rows under a live lease are left to their worker, whose record ends them.
 *
 * Reads the outbox from end to end (65 ms for a million rows, measured): an index on the time would cost more with each
 * row than this does once in a while.
 */
export async function endExpiredDeliveries(sql: Sql, limit: number): Promise<Ended> {
  return endAll(sql, "EXPIRED", (tx) => tx`q.expires_at <= now() AND ${isUnleased(tx)}`, limit);
}

/**
 * Ends up to `limit` failing deliveries that have held others of their user back for `orderHoldMs`, measured while one
 * waited and by the lane's own clock: it stands while the lane is paused, disabled or broken, and then nothing ends.
 */
export async function endHoldingDeliveries(sql: Sql, orderHoldMs: number, limit: number): Promise<Ended> {
  const hasHeldTooLong: Condition = (tx) => {
    const hold = tx`${orderHoldMs}::bigint * interval '1 millisecond'`;
    return tx`
      q.failures > 0 AND isfinite(q.next_at) AND q.held_from <= now() - ${hold} AND ${isUnleased(tx)} AND (
        -- For each row that meets the rest, in the order of one index: EXISTS would let the planner join all with all.
        SELECT true FROM nuncio.outbox behind
        LEFT JOIN nuncio.lane_states l ON l.subscription_key = behind.subscription_key
        WHERE behind.user_key = q.user_key AND behind.subscription_key = q.subscription_key
          AND behind.user_sequence > q.user_sequence AND l.stopped_since IS NULL
          AND greatest(q.held_from, behind.held_from) <= now() - coalesce(l.stopped_for, '0') - ${hold}
        ORDER BY behind.user_sequence LIMIT 1)`;
  };
  return endAll(sql, "ORDER_HOLD", hasHeldTooLong, limit);
}

/**
 * Cancels up to `limit` deliveries of a deleted subscription. Rows under a live lease are left to their worker: its
 * record ends them, or its lease does.
 */
export async function cancelDeliveriesOfDeletedSubscription(
  sql: Sql,
  subscriptionKey: number,
  limit: number,
): Promise<Ended> {
  const belongsToDeleted: Condition = (tx) => tx`
    q.subscription_key = ${subscriptionKey}::integer AND ${isUnleased(tx)} AND EXISTS (
      SELECT FROM nuncio.webhook_subscriptions s
      WHERE s.subscription_key = q.subscription_key AND s.deleted_at IS NOT NULL)`;
  return endAll(sql, "SUBSCRIPTION_DELETED", belongsToDeleted, limit);
}

/** Ends up to `limit` of the rows that meet the condition: found without a lock, judged again under it. */
async function endAll(sql: Sql, reason: EndReason, condition: Condition, limit: number): Promise<Ended> {
  const candidates = await sql<Candidate[]>`
    SELECT q.subscription_key, q.event_key, q.user_key, NULL AS lease_token
    FROM nuncio.outbox q WHERE ${condition(sql)} LIMIT ${limit}::integer`;
  return candidates.length === 0 ? NONE_ENDED : end(sql, reason, candidates, condition);
}

/**
 * Makes dead letters of the candidates that meet the condition, and makes due what waited behind them, in one
 * transaction: no row is ever in neither table, and none waits for one that has gone. Users are locked first, then rows
 * in the order of the primary key, as everywhere.
 */
async function end(
  sql: Sql,
  reason: EndReason,
  candidates: readonly Candidate[],
  condition: Condition,
  uncountedAttempts = 0,
): Promise<Ended> {
  return sql.begin(async (tx) => {
    await lockUsers(tx, candidates);
    const ended = await tx`
      WITH ending AS (
        SELECT q.ctid AS place
        FROM unnest(
          ${toArrayText(candidates, (row) => row.subscription_key)}::integer[],
          ${toArrayText(candidates, (row) => row.event_key)}::uuid[],
          ${toArrayText(candidates, (row) => row.lease_token)}::bigint[]
        ) AS c (subscription_key, event_key, lease_token)
        JOIN nuncio.outbox q ON q.subscription_key = c.subscription_key AND q.event_key = c.event_key
        WHERE ${condition(tx)}
        ORDER BY q.subscription_key, q.event_key
        FOR UPDATE OF q
      ), gone AS (
        DELETE FROM nuncio.outbox q USING ending e WHERE q.ctid = e.place
        RETURNING q.event_key, q.tenant_key, q.subscription_key, q.attempt - ${uncountedAttempts}::integer AS attempt
      )
      INSERT INTO nuncio.dead_letters (event_key, tenant_key, subscription_key, attempt, end_reason)
      SELECT event_key, tenant_key, subscription_key, attempt, ${toEndReasonCode(reason)}::smallint FROM gone
      ON CONFLICT (subscription_key, event_key) DO UPDATE
        SET ended_at = excluded.ended_at, attempt = excluded.attempt, end_reason = excluded.end_reason`;
    return { count: ended.count, ...(await promoteFollowers(tx, candidates)) };
  });
}
