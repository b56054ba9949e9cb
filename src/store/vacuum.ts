import type { Sql } from "postgres";
import type { RowCounts } from "../core/vacuum-pace.ts";

/** Whether a role (undefined: that of the connection) may vacuum the outbox: from Postgres 17 on, by the privilege MAINTAIN. */
export async function mayVacuumOutbox(sql: Sql, role?: "nuncio_worker"): Promise<boolean> {
  const [row] = await sql<{ may: boolean }[]>`
    SELECT CASE WHEN current_setting('server_version_num')::integer >= 170000
      THEN has_table_privilege(coalesce(${role ?? null}::name, current_user), 'nuncio.outbox', 'MAINTAIN')
      ELSE false END AS may`;
  return row?.may ?? false;
}

/** What the statistics say of the outbox, some seconds behind at most; `vacuums` counts those that have been made. */
export async function countOutboxRows(sql: Sql): Promise<RowCounts & { readonly vacuums: number }> {
  const [row] = await sql<{ live: number; dead: number; vacuums: number }[]>`
    SELECT pg_stat_get_live_tuples(c.oid)::double precision AS live, pg_stat_get_dead_tuples(c.oid)::double precision AS dead,
      pg_stat_get_vacuum_count(c.oid)::double precision AS vacuums
    FROM (SELECT 'nuncio.outbox'::regclass AS oid) AS c`;
  return row ?? { live: 0, dead: 0, vacuums: 0 };
}

/**
 * Clears the dead rows of the outbox away. Skipped by Postgres without an error while another vacuum is at work. It takes
 * as long as it takes, so `sql` must be a client without the time limits of the others; nobody waits for it, and it is
 * cancelled when the signal comes.
 */
export async function vacuumOutbox(sql: Sql, signal: AbortSignal): Promise<void> {
  const vacuum = sql`VACUUM (SKIP_LOCKED, TRUNCATE OFF, INDEX_CLEANUP ON) nuncio.outbox`;
  const cancel = () => vacuum.cancel();
  signal.addEventListener("abort", cancel);
  try {
    await vacuum;
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}
