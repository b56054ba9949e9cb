import type { PendingQuery, Row, Sql, TransactionSql } from "postgres";
import { isUnleased } from "./held.ts";
import { scanOutbox } from "./scan.ts";

/** A lane as the outbox and its state show it. Times are distances from now, in milliseconds. */
export type LaneSighting = {
  readonly lane: number;
  readonly tenant: number;
  /** That of the subscription; grows with every change of it. */
  readonly revision: number;
  readonly deleted: boolean;
  /** Neither paused nor disabled. */
  readonly enabled: boolean;
  /** When its first row comes due; infinite for no row, and while the subscription is not enabled. */
  readonly dueInMs: number;
  /** When its first row is due by the database's clock, enabled or not, and that clock: in milliseconds since 1970. */
  readonly databaseDueAtMs: number;
  readonly databaseNowMs: number;
  /** Requests at once; undefined: the operator's bound. */
  readonly maxInFlight: number | undefined;
  readonly requestsPerSecond: number | undefined;
  readonly heldForMs: number | undefined;
  readonly breakerForMs: number | undefined;
  readonly breakerTrips: number;
  readonly consecutiveFailures: number;
  readonly failingForMs: number | undefined;
  readonly succeededAgoMs: number | undefined;
  readonly recoveringForMs: number | undefined;
};

/** Where a look is on its way through the lanes: those with a greater key than `after`, at most so many. */
type LanePage = { readonly after: number; readonly limit: number };

/**
 * Lanes with deliveries that have a time and no live lease, in the order of their keys. One index descent per lane, whatever is
 * pending in it.
 */
export function listLanes(sql: Sql, { after, limit }: LanePage): Promise<LaneSighting[]> {
  return sight(sql, sql`SELECT * FROM nuncio.list_lanes(${after}::integer, ${limit}::integer)`);
}

/**
 * Of these the lanes where something is due that was not due `overdueMs` ago, and of each the first of that. Not those of
 * deleted subscriptions. Reads nothing of what was due before.
 */
export function listLanesSince(
  sql: Sql,
  { after, limit, overdueMs }: LanePage & { overdueMs: number },
): Promise<LaneSighting[]> {
  return sight(
    sql,
    sql`
      SELECT * FROM nuncio.list_lanes_since(${after}::integer, ${limit}::integer,
        now() - ${overdueMs}::double precision * interval '1 millisecond')`,
  );
}

/**
 * All lanes behind `after` as `listLanes` brings them, but found by reading the table as it lies. It costs what the outbox is
 * long, live and dead; the index costs what is dead in it, several entries and a page of the table for each row. So this is for
 * the time in which Postgres may clear nothing away.
 */
export function scanLanes(sql: Sql, after: number): Promise<LaneSighting[]> {
  return scanOutbox(sql, (tx) =>
    sight(tx, tx`SELECT * FROM (${firstTimes(tx)}) AS f WHERE f.subscription_key > ${after}::integer`),
  );
}

/** These lanes as `getLanes` brings them, found like `scanLanes`. */
export function scanTheseLanes(sql: Sql, lanes: readonly number[]): Promise<LaneSighting[]> {
  return scanOutbox(sql, (tx) =>
    sight(
      tx,
      tx`
        SELECT k.lane AS subscription_key, f.next_at FROM unnest(${lanes as number[]}::integer[]) AS k (lane)
        LEFT JOIN (${firstTimes(tx)}) AS f ON f.subscription_key = k.lane`,
    ),
  );
}

function firstTimes(tx: TransactionSql): PendingQuery<Row[]> {
  // OFFSET 0 keeps the conditions out of it, and with them every index.
  return tx`
    SELECT q.subscription_key, min(q.next_at) AS next_at
    FROM (SELECT o.subscription_key, o.next_at, o.lease_expires_at FROM nuncio.outbox o OFFSET 0) AS q
    WHERE q.next_at < 'infinity' AND ${isUnleased(tx)}
    GROUP BY q.subscription_key`;
}

/** These lanes, also those without rows; a lane that never was is left out. */
export function getLanes(sql: Sql, lanes: readonly number[]): Promise<LaneSighting[]> {
  return sight(sql, sql`SELECT * FROM nuncio.first_due(${lanes as number[]}::integer[])`);
}

type SightingRow = {
  lane: number;
  tenant: number;
  revision: number;
  deleted: boolean;
  enabled: boolean;
  due_ms: number | null;
  due_at_ms: number | null;
  now_ms: number;
  max_in_flight: number | null;
  requests_per_second: number | null;
  held_ms: number | null;
  breaker_ms: number | null;
  breaker_trips: number;
  consecutive_failures: number;
  failing_ms: number | null;
  succeeded_ms: number | null;
  recovering_ms: number | null;
};

async function sight(sql: Sql | TransactionSql, lanes: PendingQuery<Row[]>): Promise<LaneSighting[]> {
  const msUntil = (time: string) => sql.unsafe(`(date_part('epoch', ${time} - now()) * 1000)`);
  const rows = await sql<SightingRow[]>`
    SELECT s.subscription_key AS lane, s.tenant_key AS tenant, s.revision, s.deleted_at IS NOT NULL AS deleted,
      s.state = 1 AS enabled,
      -- An infinite time has no distance: a lane whose rows all wait for others is due "never".
      CASE WHEN isfinite(k.next_at) AND (s.state = 1 OR s.deleted_at IS NOT NULL) THEN ${msUntil("k.next_at")} END AS due_ms,
      CASE WHEN isfinite(k.next_at) THEN date_part('epoch', k.next_at) * 1000 END AS due_at_ms,
      date_part('epoch', now()) * 1000 AS now_ms,
      s.max_in_flight, s.requests_per_second,
      ${msUntil("l.held_until")} AS held_ms, ${msUntil("l.breaker_until")} AS breaker_ms,
      coalesce(l.breaker_trips, 0) AS breaker_trips, coalesce(l.consecutive_failures, 0) AS consecutive_failures,
      -${msUntil("l.failing_since")} AS failing_ms, -${msUntil("l.last_success_at")} AS succeeded_ms,
      -${msUntil("l.recovering_since")} AS recovering_ms
    FROM (${lanes}) AS k
    JOIN nuncio.webhook_subscriptions s ON s.subscription_key = k.subscription_key
    LEFT JOIN nuncio.lane_states l ON l.subscription_key = k.subscription_key
    ORDER BY s.subscription_key`;
  return rows.map((row) => ({
    lane: row.lane,
    tenant: row.tenant,
    revision: row.revision,
    deleted: row.deleted,
    enabled: row.enabled,
    dueInMs: row.due_ms ?? Number.POSITIVE_INFINITY,
    databaseDueAtMs: row.due_at_ms ?? Number.POSITIVE_INFINITY,
    databaseNowMs: row.now_ms,
    maxInFlight: row.max_in_flight ?? undefined,
    requestsPerSecond: row.requests_per_second ?? undefined,
    heldForMs: row.held_ms !== null && row.held_ms > 0 ? row.held_ms : undefined,
    breakerForMs: row.breaker_ms ?? undefined,
    breakerTrips: row.breaker_trips,
    consecutiveFailures: row.consecutive_failures,
    failingForMs: row.failing_ms ?? undefined,
    succeededAgoMs: row.succeeded_ms ?? undefined,
    recoveringForMs: row.recovering_ms ?? undefined,
  }));
}

/** How many rows of each lane are due now, counted up to `limit` each. Served by `outbox_due`. */
export async function countDue(sql: Sql, lanes: readonly number[], limit: number): Promise<Map<number, number>> {
  const rows = await sql<{ lane: number; due: number }[]>`
    SELECT k.lane, waiting.due
    FROM unnest(${lanes as number[]}::integer[]) AS k (lane)
    CROSS JOIN LATERAL (
      SELECT count(*)::integer AS due FROM (
        SELECT FROM nuncio.outbox q
        WHERE q.subscription_key = k.lane AND q.next_at <= now() AND q.next_at < 'infinity'
          AND ${isUnleased(sql)}
        LIMIT ${limit}::integer
      ) AS some_of_them
    ) AS waiting`;
  return new Map(rows.map(({ lane, due }) => [lane, due]));
}

/** The live leases of these lanes, which some worker holds, and how long the last of them lasts. */
export type LiveLeases = { readonly lane: number; readonly count: number; readonly lastForMs: number };

/** Found by reading the table as it lies, like `scanLanes`: what is leased has no place of its own in an index. */
export async function countLeases(sql: Sql, lanes: readonly number[]): Promise<LiveLeases[]> {
  const rows = await scanOutbox(
    sql,
    (tx) => tx<{ lane: number; count: number; last_ms: number }[]>`
      SELECT r.subscription_key AS lane, count(*)::integer AS count,
        max(date_part('epoch', r.lease_expires_at - now()) * 1000) AS last_ms
      FROM (SELECT q.subscription_key, q.lease_expires_at FROM nuncio.outbox q OFFSET 0) AS r
      WHERE r.lease_expires_at > now() AND r.subscription_key = ANY (${lanes as number[]}::integer[])
      GROUP BY r.subscription_key`,
  );
  return rows.map((row) => ({ lane: row.lane, count: row.count, lastForMs: row.last_ms }));
}
