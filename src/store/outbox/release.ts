import type { Sql } from "postgres";
import { toArrayText } from "../array-text.ts";
import type { ClaimedDelivery } from "./claim.ts";

/**
 * Hands leases back unused: the rows are due at once and the attempt is not counted. Only while the lease is still ours.
 * If we crash before this returns, the rows come due when their leases end, and the attempt counts.
 */
export async function releaseDeliveries(
  sql: Sql,
  claimed: readonly Pick<ClaimedDelivery, "subscriptionKey" | "eventKey" | "leaseToken">[],
): Promise<number> {
  const released = await sql`
    UPDATE nuncio.outbox q
    SET next_at = now(), lease_token = NULL, lease_expires_at = NULL, attempt = q.attempt - 1
    FROM unnest(
      ${toArrayText(claimed, (delivery) => delivery.subscriptionKey)}::integer[],
      ${toArrayText(claimed, (delivery) => delivery.eventKey)}::uuid[],
      ${toArrayText(claimed, (delivery) => delivery.leaseToken)}::bigint[]
    ) AS c (subscription_key, event_key, lease_token)
    WHERE q.subscription_key = c.subscription_key AND q.event_key = c.event_key AND q.lease_token = c.lease_token`;
  return released.count;
}
