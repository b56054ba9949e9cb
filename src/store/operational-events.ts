import { and, desc, eq, inArray, lt } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { fromCode } from "../core/codes.ts";
import { formatOperationalEventId, formatSubscriptionId, type Uuid } from "../core/ids.ts";
import {
  fromReasonCode,
  OPERATIONAL_EVENT_TYPES,
  type OperationalEventType,
  toOperationalEventTypeCode,
} from "../core/operational-event.ts";
import { operationalEvents, tenants, webhookSubscriptions } from "./schema.ts";

export type OperationalEvent = {
  readonly uuid: Uuid;
  readonly id: string;
  readonly tenantId: string;
  readonly subscriptionId: string;
  readonly type: OperationalEventType;
  readonly reason: string;
  readonly count: number;
  readonly firstAt: Date;
  readonly lastAt: Date;
};

export type OperationalEventFilter = {
  readonly subscription: Uuid | undefined;
  /** Empty: all. */
  readonly types: readonly OperationalEventType[];
};

/** Up to `limit` operational events of the tenant, newest first, that come after `after` in that order. */
export async function listOperationalEvents(
  orm: PostgresJsDatabase,
  tenantId: string,
  { subscription, types }: OperationalEventFilter,
  { after, limit }: { after: Uuid | undefined; limit: number },
): Promise<OperationalEvent[]> {
  const rows = await orm
    .select({ event: operationalEvents, subscriptionUuid: webhookSubscriptions.subscriptionUuid })
    .from(operationalEvents)
    .innerJoin(tenants, eq(tenants.tenantKey, operationalEvents.tenantKey))
    .innerJoin(webhookSubscriptions, eq(webhookSubscriptions.subscriptionKey, operationalEvents.subscriptionKey))
    .where(
      and(
        eq(tenants.tenantId, tenantId),
        subscription === undefined ? undefined : eq(webhookSubscriptions.subscriptionUuid, subscription),
        types.length === 0 ? undefined : inArray(operationalEvents.type, types.map(toOperationalEventTypeCode)),
        after === undefined ? undefined : lt(operationalEvents.operationalEventUuid, after),
      ),
    )
    .orderBy(desc(operationalEvents.operationalEventUuid))
    .limit(limit);
  return rows.map(({ event, subscriptionUuid }) => {
    const type = fromCode(OPERATIONAL_EVENT_TYPES, event.type);
    return {
      uuid: event.operationalEventUuid,
      id: formatOperationalEventId(event.operationalEventUuid),
      tenantId,
      subscriptionId: formatSubscriptionId(subscriptionUuid),
      type,
      reason: fromReasonCode(type, event.reason),
      count: event.count,
      firstAt: event.firstAt,
      lastAt: event.lastAt,
    };
  });
}
