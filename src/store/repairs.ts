import { sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { toEndReasonCode } from "../core/delivery.ts";
import { FailedPreconditionError } from "../core/errors.ts";
import { type Delivery, type DeliveryPlace, getDelivery } from "./deliveries.ts";
import type { Promoted } from "./outbox/promote.ts";

/** A delivery as it is after a repair, and where something has come due at which time of the database, for the wake-up. */
export type Repaired = Promoted & { readonly delivery: Delivery };

/** Delivers one delivery once more, or now: `nuncio.redrive_delivery`. */
export async function redriveDelivery(
  orm: PostgresJsDatabase,
  tenantId: string,
  place: DeliveryPlace,
  { maxPendingMs, payloadRetentionMs }: { maxPendingMs: number; payloadRetentionMs: number },
): Promise<Repaired> {
  const lane = await findLane(orm, tenantId, place);
  const [row] = await orm.execute<{ outcome: "redriven" | "due_now" | "waits" | "under_way" | "not_redrivable" }>(sql`
    SELECT nuncio.redrive_delivery(${lane}::integer, ${place.eventKey}::uuid, ${maxPendingMs}::bigint,
      ${payloadRetentionMs}::bigint) AS outcome`);
  switch (row?.outcome) {
    case "waits":
      throw new FailedPreconditionError("DELIVERY_WAITS", "an earlier delivery of the same user has not ended");
    case "under_way":
      throw underWay();
    case "not_redrivable":
      throw new FailedPreconditionError(
        "DELIVERY_NOT_REDRIVABLE",
        "the delivery was cancelled or erased, its payload has expired, or its subscription was deleted",
      );
    default: {
      const { delivery } = await getDelivery(orm, tenantId, place);
      // One that was due already has kept its place, which claims may have passed by.
      return { delivery, promoted: [lane], atMs: delivery.nextAttemptAtMs };
    }
  }
}

/** Ends one pending delivery as CANCELLED_BY_REQUEST; one that was cancelled before stays as it is. */
export async function cancelDelivery(
  orm: PostgresJsDatabase,
  tenantId: string,
  place: DeliveryPlace,
): Promise<Repaired> {
  const lane = await findLane(orm, tenantId, place);
  const reason = toEndReasonCode("CANCELLED_BY_REQUEST");
  type Row = { outcome: "ended" | "under_way" | "not_pending"; has_promoted: boolean; at_ms: number };
  const [row] = await orm.execute<Row>(sql`
    SELECT c.outcome, cardinality(c.promoted) > 0 AS has_promoted, date_part('epoch', now()) * 1000 AS at_ms
    FROM nuncio.cancel_delivery(${lane}::integer, ${place.eventKey}::uuid, ${reason}::smallint) AS c`);
  if (row?.outcome === "under_way") throw underWay();
  const { delivery } = await getDelivery(orm, tenantId, place);
  if (row?.outcome === "not_pending" && delivery.state !== "CANCELLED") {
    throw new FailedPreconditionError("DELIVERY_ENDED", `the delivery has ended already: ${delivery.state}`);
  }
  return { delivery, promoted: row?.has_promoted ? [lane] : [], atMs: row?.at_ms };
}

/** The lane of a delivery that the tenant has; throws NOT_FOUND otherwise. */
async function findLane(orm: PostgresJsDatabase, tenantId: string, place: DeliveryPlace): Promise<number> {
  await getDelivery(orm, tenantId, place);
  const [row] = await orm.execute<{ lane: number }>(sql`
    SELECT s.subscription_key AS lane FROM nuncio.webhook_subscriptions s
    WHERE s.subscription_uuid = ${place.subscription}::uuid`);
  return row?.lane ?? 0;
}

function underWay(): FailedPreconditionError {
  return new FailedPreconditionError("DELIVERY_UNDER_WAY", "a worker is sending the delivery right now");
}
