import type { PendingQuery, Row, Sql } from "postgres";
import { toArrayText } from "../array-text.ts";
import type { ClaimedDelivery } from "./claim.ts";

export type Lease = Pick<ClaimedDelivery, "subscriptionKey" | "eventKey" | "leaseToken">;

/**
 * A query for the places of the rows whose leases are still these, locked. In the order of the primary key, as a record
 * locks them: a row that turns out to be another's stays locked all the same, and any other order could deadlock.
 */
export function lockHeld(sql: Sql, leases: readonly Lease[]): PendingQuery<Row[]> {
  return sql`
    SELECT held.ctid
    FROM unnest(
      ${toArrayText(leases, (lease) => lease.subscriptionKey)}::integer[],
      ${toArrayText(leases, (lease) => lease.eventKey)}::uuid[],
      ${toArrayText(leases, (lease) => lease.leaseToken)}::bigint[]
    ) AS l (subscription_key, event_key, lease_token)
    JOIN nuncio.outbox held ON held.subscription_key = l.subscription_key AND held.event_key = l.event_key
      AND held.lease_token = l.lease_token
    ORDER BY held.subscription_key, held.event_key
    FOR UPDATE OF held`;
}
