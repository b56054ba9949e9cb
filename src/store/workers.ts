import type { Sql } from "postgres";
import type { Uuid } from "../core/ids.ts";

/** How often a worker says that it lives. */
export const HEARTBEAT_MS = 2_000;
/** How old a heartbeat may be before its worker counts as gone. */
export const HEARTBEAT_LIFE_MS = 6_000;

/** Says that this worker lives, and returns all that do, itself included. Forgets who has been gone for a day. */
export async function beat(sql: Sql, worker: Uuid): Promise<Uuid[]> {
  const rows = await sql<{ worker: Uuid }[]>`
    WITH beaten AS (
      INSERT INTO nuncio.workers (worker_uuid, heartbeat_at) VALUES (${worker}::uuid, now())
      ON CONFLICT (worker_uuid) DO UPDATE SET heartbeat_at = excluded.heartbeat_at
    ), forgotten AS (
      DELETE FROM nuncio.workers w WHERE w.heartbeat_at < now() - interval '1 day'
    )
    SELECT w.worker_uuid AS worker FROM nuncio.workers w
    WHERE w.worker_uuid <> ${worker}::uuid
      AND w.heartbeat_at > now() - ${HEARTBEAT_LIFE_MS}::integer * interval '1 millisecond'`;
  return [worker, ...rows.map((row) => row.worker)];
}

/** Leaves: the others own its lanes from their next heartbeat on. */
export async function leave(sql: Sql, worker: Uuid): Promise<void> {
  await sql`DELETE FROM nuncio.workers WHERE worker_uuid = ${worker}::uuid`;
}
