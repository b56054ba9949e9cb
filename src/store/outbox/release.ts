import type { Sql } from "postgres";
import { type Lease, lockHeld } from "./held.ts";

/**
 * Hands leases back unused: the rows are due at once and the attempt is not counted. Only while the lease is still ours.
 * If we crash before this returns, the rows come due when their leases end, and the attempt counts.
 */
export async function releaseDeliveries(sql: Sql, claimed: readonly Lease[]): Promise<number> {
  const released = await sql`
    UPDATE nuncio.outbox q
    SET next_at = now(), lease_token = NULL, lease_expires_at = NULL, attempt = q.attempt - 1
    WHERE q.ctid = ANY (ARRAY(${lockHeld(sql, claimed)}))`;
  return released.count;
}
