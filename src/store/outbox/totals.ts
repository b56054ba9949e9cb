import type { Sql } from "postgres";
import { isUnleased } from "./held.ts";

/** What stands in the outbox, over all tenants. */
export type OutboxTotals = {
  /** May be sent, or has been failing and waits for its next attempt. */
  readonly pending: number;
  /** Behind an earlier delivery of the same user. */
  readonly waiting: number;
  /** On a lease. */
  readonly delivering: number;
  /** Due, of a subscription that is enabled and neither held nor broken. */
  readonly due: number;
  /** For how long the oldest of those has been due, in seconds; 0 if none is. */
  readonly oldestDueSeconds: number;
};

/** One pass over the outbox: not for each second. */
export async function countOutbox(sql: Sql): Promise<OutboxTotals> {
  const [row] = await sql<
    { pending: number; waiting: number; delivering: number; due: number; oldest: number | null }[]
  >`
    SELECT count(*) FILTER (WHERE NOT o.is_leased AND o.next_at < 'infinity')::float8 AS pending,
      count(*) FILTER (WHERE o.next_at = 'infinity')::float8 AS waiting,
      count(*) FILTER (WHERE o.is_leased)::float8 AS delivering,
      count(*) FILTER (WHERE o.is_due)::float8 AS due,
      extract(epoch FROM now() - min(o.next_at) FILTER (WHERE o.is_due))::float8 AS oldest
    FROM (
      SELECT q.next_at, coalesce(q.lease_expires_at > now(), false) AS is_leased,
        q.next_at <= now() AND ${isUnleased(sql)} AND s.state = 1 AND s.deleted_at IS NULL
          AND l.breaker_until IS NULL AND coalesce(l.held_until <= now(), true) AS is_due
      -- OFFSET 0 keeps the rest out: the rows are read as they lie, by no index, of which each entry may be dead.
      FROM (SELECT o.subscription_key, o.next_at, o.lease_expires_at FROM nuncio.outbox o OFFSET 0) AS q
      JOIN nuncio.webhook_subscriptions s ON s.subscription_key = q.subscription_key
      LEFT JOIN nuncio.lane_states l ON l.subscription_key = q.subscription_key
    ) AS o`;
  const { pending = 0, waiting = 0, delivering = 0, due = 0, oldest = null } = row ?? {};
  return { pending, waiting, delivering, due, oldestDueSeconds: Math.max(0, oldest ?? 0) };
}
