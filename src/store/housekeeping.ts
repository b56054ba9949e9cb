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
