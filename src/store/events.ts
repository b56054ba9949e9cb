import { and, eq } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { NotFoundError } from "../core/errors.ts";
import { type Uuid, uuidV7EpochMs } from "../core/ids.ts";
import { eventIds, events, tenants } from "./schema.ts";

export type StoredEvent = { readonly body: string; readonly userSequence: bigint; readonly createdAtMs: number };

/** An event by its tenant's own id: `event_ids` leads to the key, and the key to the partition. */
export async function getEvent(orm: PostgresJsDatabase, tenantId: string, eventId: string): Promise<StoredEvent> {
  const [row] = await orm
    .select({ body: events.body, userSequence: events.userSequence, eventKey: events.eventKey })
    .from(tenants)
    .innerJoin(eventIds, and(eq(eventIds.tenantKey, tenants.tenantKey), eq(eventIds.eventId, eventId)))
    .innerJoin(events, and(eq(events.tenantKey, eventIds.tenantKey), eq(events.eventKey, eventIds.eventKey)))
    .where(eq(tenants.tenantId, tenantId));
  if (!row) throw new NotFoundError("EVENT_NOT_FOUND", "there is no such event in this tenant");
  return { body: row.body, userSequence: row.userSequence, createdAtMs: uuidV7EpochMs(row.eventKey as Uuid) };
}
