import type { Sql } from "postgres";

/** How many days of partitions there always are ahead. */
export const PARTITION_DAYS_AHEAD = 14;

/** Makes the daily partitions that are missing. Cheap when none is; any process may call it at any time. */
export async function ensurePartitions(sql: Sql): Promise<void> {
  await sql`SELECT nuncio.ensure_partitions(${PARTITION_DAYS_AHEAD}::integer)`;
}

/** Undefined if tomorrow's events and attempts have a place, else what is wrong. */
export async function findPartitionFault(sql: Sql): Promise<string | undefined> {
  const [row] = await sql<{ missing: boolean }[]>`
    SELECT to_regclass('nuncio.events_' || d.suffix) IS NULL
      OR to_regclass('nuncio.delivery_attempts_' || d.suffix) IS NULL AS missing
    FROM (SELECT to_char((now() + interval '1 day') AT TIME ZONE 'UTC', 'YYYYMMDD') AS suffix) AS d`;
  return row?.missing ? "tomorrow's partitions are missing: nuncio.ensure_partitions has not run" : undefined;
}

/** How long finished things are kept, in milliseconds. */
export type Retention = {
  readonly payloadMs: number;
  readonly attemptMs: number;
  readonly deadLetterMs: number;
};

/** Rows that one statement deletes: short enough that nobody waits for it. */
const DELETE_BATCH = 5_000;

/**
 * Drops the days that lie behind their retention, and deletes what has outlived its payload. Safe to call at any time, by
 * several workers at once. A day of events that something unfinished needs stays. Returns what was dropped; throws
 * lock_not_available when somebody holds the table for longer than the drop may wait, and then the next call goes on.
 */
export async function dropOutlived(sql: Sql, { payloadMs, attemptMs, deadLetterMs }: Retention): Promise<string[]> {
  const dropped: string[] = [];
  for (const [parent, keepMs] of [["events", payloadMs] as const, ["delivery_attempts", attemptMs] as const]) {
    for (;;) {
      const [row] = await sql<{ name: string | null }[]>`
        SELECT nuncio.drop_oldest_partition(${parent}, ${keepMs}::bigint) AS name`;
      if (row?.name == null) break;
      dropped.push(row.name);
    }
  }
  for (;;) {
    const [row] = await sql<{ deleted: number }[]>`
      SELECT nuncio.delete_outlived(${payloadMs}::bigint, ${deadLetterMs}::bigint, ${DELETE_BATCH}::integer) AS deleted`;
    if (!row?.deleted) return dropped;
  }
}
