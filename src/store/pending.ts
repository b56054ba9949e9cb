import type { Sql } from "postgres";

/** Pending deliveries of each tenant that has `atLeast` so many. One pass over the outbox. */
export async function countPending(sql: Sql, atLeast: number): Promise<Map<string, number>> {
  const rows = await sql<{ tenant_id: string; count: number }[]>`
    SELECT t.tenant_id, p.count
    FROM (
      SELECT o.tenant_key, count(*)::double precision AS count
      -- OFFSET 0: read as they lie, by no index, of which each entry may be dead.
      FROM (SELECT q.tenant_key FROM nuncio.outbox q OFFSET 0) AS o
      GROUP BY o.tenant_key HAVING count(*) >= ${atLeast}::bigint
    ) AS p
    JOIN nuncio.tenants t ON t.tenant_key = p.tenant_key`;
  return new Map(rows.map((row) => [row.tenant_id, row.count]));
}
