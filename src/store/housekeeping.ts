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
 * several workers at once. A day of events that something unfinished needs stays. Returns what was dropped.
 *
 * Where somebody holds a table for longer than a drop may wait, the rest is done all the same, and what was refused
 * (lock_not_available) is thrown at the end: the next call goes on.
 */
export async function dropOutlived(sql: Sql, { payloadMs, attemptMs, deadLetterMs }: Retention): Promise<string[]> {
  const events = await attempt(() => dropDays(sql, "events", payloadMs));
  const attempts = await attempt(() => dropDays(sql, "delivery_attempts", attemptMs));
  await deleteOutlived(sql, deadLetterMs);
  await sql`DELETE FROM nuncio.redrives WHERE ended_at < now() - ${deadLetterMs}::bigint * interval '1 millisecond'`;
  for (const dropped of [events, attempts]) if (dropped instanceof Error) throw dropped;
  return [events, attempts].flatMap((dropped) => (dropped instanceof Error ? [] : dropped));
}

async function dropDays(sql: Sql, parent: "events" | "delivery_attempts", keepMs: number): Promise<string[]> {
  const dropped: string[] = [];
  for (;;) {
    const [row] = await sql<{ name: string | null }[]>`
      SELECT nuncio.drop_oldest_partition(${parent}, ${keepMs}::bigint) AS name`;
    if (row?.name == null) return dropped;
    dropped.push(row.name);
  }
}

async function deleteOutlived(sql: Sql, deadLetterMs: number): Promise<void> {
  for (;;) {
    const [row] = await sql<{ deleted: number }[]>`
      SELECT nuncio.delete_outlived(${deadLetterMs}::bigint, ${DELETE_BATCH}::integer) AS deleted`;
    if (!row?.deleted) return;
  }
}

async function attempt<T>(work: () => Promise<T>): Promise<T | Error> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Error) return error;
    throw error;
  }
}
