import type { Sql } from "postgres";

/** A lane that has rows: when its first one comes due, and whether its subscription still exists. */
export type LaneSighting = { readonly lane: number; readonly dueInMs: number; readonly deleted: boolean };

/**
 * Lanes with unfinished deliveries, in the order of their keys, beginning after `after`; those whose subscription holds
 * its deliveries back are left out. One index descent per lane, whatever is pending in it (a loose index scan, which
 * Postgres does not plan by itself).
 */
export async function listLanes(sql: Sql, after: number, limit: number): Promise<LaneSighting[]> {
  const rows = await sql<{ lane: number; due_in_ms: number; deleted: boolean; held: boolean }[]>`
    WITH RECURSIVE lane AS (
      (SELECT q.subscription_key, q.next_at FROM nuncio.outbox q
       WHERE q.subscription_key > ${after}::integer ORDER BY q.subscription_key, q.next_at LIMIT 1)
      UNION ALL
      SELECT n.subscription_key, n.next_at FROM lane l CROSS JOIN LATERAL (
        SELECT q.subscription_key, q.next_at FROM nuncio.outbox q
        WHERE q.subscription_key > l.subscription_key ORDER BY q.subscription_key, q.next_at LIMIT 1
      ) AS n
    ), page AS (SELECT * FROM lane LIMIT ${limit}::integer)
    SELECT p.subscription_key AS lane, s.deleted_at IS NOT NULL AS deleted, s.state <> 1 AS held,
      -- An infinite time has no distance: a lane whose rows all wait for others is due "never".
      CASE WHEN isfinite(p.next_at) THEN extract(epoch FROM p.next_at - now()) * 1000 ELSE 1e15 END::float8 AS due_in_ms
    FROM page p JOIN nuncio.webhook_subscriptions s ON s.subscription_key = p.subscription_key
    ORDER BY p.subscription_key`;
  return rows.map((row) => ({
    lane: row.lane,
    dueInMs: row.held && !row.deleted ? Number.POSITIVE_INFINITY : row.due_in_ms,
    deleted: row.deleted,
  }));
}
