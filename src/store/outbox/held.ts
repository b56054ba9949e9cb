import type { PendingQuery, Row, Sql, TransactionSql } from "postgres";
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
    FROM (
      SELECT * FROM unnest(
        ${toArrayText(leases, (lease) => lease.subscriptionKey)}::integer[],
        ${toArrayText(leases, (lease) => lease.eventKey)}::uuid[],
        ${toArrayText(leases, (lease) => lease.leaseToken)}::bigint[]
      ) AS u (subscription_key, event_key, lease_token)
      ORDER BY u.subscription_key, u.event_key
    ) AS l
    CROSS JOIN LATERAL (
      SELECT q.ctid FROM nuncio.outbox q
      WHERE q.subscription_key = l.subscription_key AND q.event_key = l.event_key AND q.lease_token = l.lease_token
      FOR UPDATE
    ) AS held`;
}

/** A condition on the outbox row `q`: no live lease is on it. */
export function isUnleased(sql: Sql | TransactionSql): PendingQuery<Row[]> {
  return sql`(q.lease_expires_at IS NULL OR q.lease_expires_at <= now())`;
}
