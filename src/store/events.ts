import { and, eq, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { NotFoundError } from "../core/errors.ts";
import { type EventType, toEventTypeCode } from "../core/event.ts";
import { leastUuidAt, type Uuid, uuidV7EpochMs } from "../core/ids.ts";
import { inIndexOrder } from "./database.ts";
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

export type EventFilter = {
  /** Empty: all. */
  readonly eventTypes: readonly EventType[];
  readonly userId: string | undefined;
  readonly createdFromMs: number | undefined;
  readonly createdBeforeMs: number | undefined;
};

export type ListedEvent = StoredEvent & { readonly eventKey: Uuid };

/** A page holds no more than this of bodies, but one event at least. */
const MAX_PAGE_BYTES = 4 * 1024 * 1024;
/** Events that are looked at for one page, where a filter by type leaves most of them out. */
const MOST_SCANNED = 10_000;

/**
 * Up to `limit` events of the tenant before `after`, newest first: fewer where their bodies are large, and none where none of
 * many that were looked at is of the types. `next`: where the next page begins; undefined at the end. Served by the primary
 * key, or where a user is given by `events_user`: a page costs a page.
 */
export async function listEvents(
  orm: PostgresJsDatabase,
  tenantId: string,
  filter: EventFilter,
  { after, limit }: { after: Uuid | undefined; limit: number },
): Promise<{ events: ListedEvent[]; next: Uuid | undefined }> {
  const conditions = [sql`e.tenant_key = t.tenant_key`];
  if (after !== undefined) conditions.push(sql`e.event_key < ${after}::uuid`);
  const { createdFromMs, createdBeforeMs, userId, eventTypes } = filter;
  if (createdFromMs !== undefined) conditions.push(sql`e.event_key >= ${leastUuidAt(createdFromMs)}::uuid`);
  if (createdBeforeMs !== undefined) conditions.push(sql`e.event_key < ${leastUuidAt(createdBeforeMs)}::uuid`);
  if (userId !== undefined) conditions.push(sql`e.user_id = ${userId}`);
  const codes = eventTypes.map((type) => sql`${toEventTypeCode(type)}::smallint`);
  const isWanted = codes.length === 0 ? sql`true` : sql`s.event_type IN (${sql.join(codes, sql`, `)})`;
  // One more than asked for tells whether there is another page.
  const scan = codes.length === 0 ? limit + 1 : MOST_SCANNED;
  const query = sql`
    WITH scanned AS MATERIALIZED (
      SELECT e.event_key, e.event_type, t.tenant_key FROM nuncio.tenants t CROSS JOIN LATERAL (
        SELECT e.event_key, e.event_type FROM nuncio.events e WHERE ${sql.join(conditions, sql` AND `)}
        ORDER BY e.event_key DESC LIMIT ${scan}::integer
      ) AS e
      WHERE t.tenant_id = ${tenantId}
    ), found AS (
      SELECT s.event_key, e.body, e.user_sequence
      FROM (SELECT * FROM scanned s WHERE ${isWanted} ORDER BY s.event_key DESC LIMIT ${limit + 1}::integer) AS s
      CROSS JOIN LATERAL (
        SELECT e.body, e.user_sequence FROM nuncio.events e
        WHERE e.tenant_key = s.tenant_key AND e.event_key = s.event_key LIMIT 1
      ) AS e
    ), placed AS (
      SELECT f.*, row_number() OVER newest AS place, sum(octet_length(f.body)) OVER newest AS bytes
      FROM found f WINDOW newest AS (ORDER BY f.event_key DESC)
    )
    SELECT p.event_key::text AS event_key, p.user_sequence::text AS user_sequence,
      CASE WHEN p.place <= ${limit}::integer AND (p.bytes <= ${MAX_PAGE_BYTES}::bigint OR p.place = 1) THEN p.body END AS body,
      (SELECT CASE WHEN count(*) = ${scan}::integer THEN (SELECT s.event_key::text FROM scanned s ORDER BY s.event_key LIMIT 1) END
        FROM scanned) AS last_scanned
    FROM (SELECT) AS always LEFT JOIN placed p ON true
    ORDER BY p.place`;
  const rows = await inIndexOrder(orm, (tx) =>
    tx.execute<{ event_key: Uuid; body: string | null; user_sequence: string; last_scanned: Uuid | null }>(query),
  );
  const events = rows.flatMap(({ event_key: eventKey, body, user_sequence: userSequence }) =>
    body === null ? [] : [{ eventKey, body, userSequence: BigInt(userSequence), createdAtMs: uuidV7EpochMs(eventKey) }],
  );
  const isCut = rows.some(({ event_key, body }) => event_key !== null && body === null);
  return { events, next: isCut ? events.at(-1)?.eventKey : (rows[0]?.last_scanned ?? undefined) };
}
