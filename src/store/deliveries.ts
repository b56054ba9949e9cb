import { type SQL, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { fromOutcomeCode, type OutcomeKind, type Phase, type PhaseDurations } from "../core/attempt.ts";
import {
  type DeliveryState,
  END_REASONS,
  type EndReason,
  fromEndReasonCode,
  stateOfEnd,
  toEndReasonCode,
} from "../core/delivery.ts";
import { NotFoundError } from "../core/errors.ts";
import { type EventType, fromEventTypeCode, toEventTypeCode } from "../core/event.ts";
import { type DeliveryId, formatDeliveryId, leastUuidAt, type Uuid, uuidV7EpochMs } from "../core/ids.ts";
import type { Direction } from "../core/page-token.ts";
import { inIndexOrder } from "./database.ts";

export type DeliveryFilter = {
  readonly subscription: Uuid | undefined;
  /** Empty: all. */
  readonly states: readonly DeliveryState[];
  /** Empty: all. */
  readonly eventTypes: readonly EventType[];
  readonly eventId: string | undefined;
  readonly userId: string | undefined;
  readonly createdFromMs: number | undefined;
  readonly createdBeforeMs: number | undefined;
};

export type DeliveryPlace = { readonly eventKey: Uuid; readonly subscription: Uuid };

export type Delivery = DeliveryPlace & {
  readonly id: DeliveryId;
  readonly tenantId: string;
  readonly eventId: string;
  readonly eventType: EventType;
  readonly userId: string;
  readonly userSequence: bigint;
  readonly state: DeliveryState;
  readonly endReason: EndReason | undefined;
  readonly attemptCount: number;
  readonly nextAttemptAtMs: number | undefined;
  readonly expiresAtMs: number | undefined;
  readonly createdAtMs: number;
  readonly endedAtMs: number | undefined;
};

export type DeliveryAttempt = {
  readonly number: number;
  readonly startedAtMs: number;
  readonly durationMs: number;
  readonly phases: PhaseDurations;
  readonly outcome: OutcomeKind;
  readonly httpStatus: number | undefined;
  readonly errorDetail: string;
  readonly responseExcerpt: string;
  readonly stale: boolean;
};

/** Everything that the tenant has. */
export const NO_FILTER: DeliveryFilter = {
  subscription: undefined,
  states: [],
  eventTypes: [],
  eventId: undefined,
  userId: undefined,
  createdFromMs: undefined,
  createdBeforeMs: undefined,
};

/**
 * Up to `limit` deliveries of the tenant beyond `after`, by (event, subscription) descending: newest event first, whichever
 * way `direction` leads from there, up to `scanEnd` and including it. Ends as cancelled (`isCancelled`) after `timeoutMs`.
 *
 * A delivery stands in the outbox while unfinished, in dead_letters when given up, and else only as the attempt that
 * delivered it; where it is in several (after a redrive) the first of these counts. Each is read per subscription by its
 * (subscription_key, event_key) index, newest first, so a page costs a page whatever the tenant has; all in one
 * statement, which is one snapshot.
 */
export async function listDeliveries(
  orm: PostgresJsDatabase,
  tenantId: string,
  filter: DeliveryFilter,
  {
    after,
    limit,
    direction = "older",
    scanEnd,
    timeoutMs,
  }: {
    after: DeliveryPlace | undefined;
    limit: number;
    direction?: Direction;
    scanEnd?: Uuid | undefined;
    timeoutMs?: number | undefined;
  },
): Promise<Delivery[]> {
  const order = sql.raw(direction === "older" ? "DESC" : "ASC");
  const cut = (source: string) => sql`ORDER BY ${sql.raw(source)}.event_key ${order} LIMIT ${limit}::integer`;
  const wanted = (source: string) => {
    const conditions = inFilter(sql.raw(source), filter, after, direction);
    if (scanEnd === undefined) return conditions;
    const upTo = sql.raw(direction === "older" ? ">=" : "<=");
    return sql`${conditions} AND ${sql.raw(source)}.event_key ${upTo} ${scanEnd}::uuid`;
  };
  const branches = [
    unfinished(wanted("q"), filter.states, cut("q")),
    givenUp(wanted("d"), filter.states, cut("d")),
    delivered(wanted("a"), filter.states, cut("a")),
  ].filter((branch) => branch !== undefined);
  const query = sql`
    WITH ${lanesOf(tenantId, filter)}
    SELECT l.subscription_uuid::text AS subscription_uuid, f.event_key::text AS event_key, f.event_id, f.event_type,
      f.user_id, f.user_sequence::text AS user_sequence, f.state, f.end_reason, f.attempt, f.next_at_ms,
      f.expires_at_ms, f.ended_at_ms
    FROM lane l CROSS JOIN LATERAL (${sql.join(branches, sql` UNION ALL `)}) AS f
    ORDER BY f.event_key ${order}, l.subscription_uuid ${order}
    LIMIT ${limit}::integer`;
  // The deliveries of one event or one user are few, and found by other ways than along the lane.
  const isAlongLane = filter.eventId === undefined && filter.userId === undefined;
  const rows = isAlongLane
    ? await inIndexOrder(orm, (tx) => tx.execute<DeliveryRow>(query), { timeoutMs })
    : await orm.execute<DeliveryRow>(query);
  const deliveries = rows.map((row) => toDelivery(row, tenantId));
  return direction === "older" ? deliveries : deliveries.reverse();
}

/** Deliveries that are looked at for one page, in each subscription and source, where a filter leaves most of them out. */
const MOST_SCANNED = 10_000;

/**
 * How far a page that is filtered by what no index has (the event's type, or the state among what is unfinished or given up)
 * may look from `after` on, so that it is answered in time also where hardly anything passes. Undefined: to the end.
 */
export async function findScanEnd(
  orm: PostgresJsDatabase,
  tenantId: string,
  filter: DeliveryFilter,
  { after, direction }: { after: DeliveryPlace | undefined; direction: Direction },
): Promise<Uuid | undefined> {
  // Those of one event or one user are found by other ways than along the lane.
  if (filter.eventId !== undefined || filter.userId !== undefined) return undefined;
  const order = sql.raw(direction === "older" ? "DESC" : "ASC");
  const lastOf = (table: string) => sql`(
    SELECT x.event_key FROM ${sql.raw(`nuncio.${table}`)} x
    WHERE x.subscription_key = l.subscription_key
      AND ${inFilter(sql`x`, { ...filter, eventTypes: [] }, after, direction)}
    ORDER BY x.event_key ${order} OFFSET ${MOST_SCANNED - 1} LIMIT 1)`;
  const [row] = await inIndexOrder(orm, (tx) =>
    tx.execute<{ scan_end: Uuid | null }>(sql`
      WITH ${lanesOf(tenantId, filter)}
      SELECT k.event_key::text AS scan_end
      FROM lane l CROSS JOIN LATERAL (
        VALUES (${lastOf("outbox")}), (${lastOf("dead_letters")}), (${lastOf("delivery_attempts")})
      ) AS k (event_key)
      WHERE k.event_key IS NOT NULL
      ORDER BY k.event_key ${order} LIMIT 1`),
  );
  return row?.scan_end ?? undefined;
}

function lanesOf(tenantId: string, filter: DeliveryFilter): SQL {
  return sql`lane AS (
      SELECT s.subscription_key, s.subscription_uuid, s.tenant_key
      FROM nuncio.webhook_subscriptions s JOIN nuncio.tenants t ON t.tenant_key = s.tenant_key
      WHERE t.tenant_id = ${tenantId}
      ${filter.subscription === undefined ? sql`` : sql`AND s.subscription_uuid = ${filter.subscription}::uuid`}
    )`;
}

/** One delivery and its newest 100 attempts, oldest first, from one snapshot. */
export async function getDelivery(
  orm: PostgresJsDatabase,
  tenantId: string,
  place: DeliveryPlace,
): Promise<{ delivery: Delivery; attempts: DeliveryAttempt[] }> {
  return orm.transaction(
    async (tx) => {
      const filter = { ...NO_FILTER, subscription: place.subscription };
      const [delivery] = await listDeliveries(tx, tenantId, filter, { after: justBefore(place), limit: 1 });
      if (delivery?.eventKey !== place.eventKey) {
        throw new NotFoundError("DELIVERY_NOT_FOUND", "there is no such delivery in this tenant");
      }
      return { delivery, attempts: await listAttempts(tx, place) };
    },
    { isolationLevel: "repeatable read", accessMode: "read only" },
  );
}

async function listAttempts(
  orm: Pick<PostgresJsDatabase, "execute">,
  place: DeliveryPlace,
): Promise<DeliveryAttempt[]> {
  const rows = await orm.execute<AttemptRow>(sql`
    SELECT a.number, extract(epoch FROM a.started_at)::float8 * 1000 AS started_at_ms, a.duration_ms, a.outcome,
      a.http_status, a.stale, a.dns_ms, a.connect_ms, a.first_byte_ms, a.body_ms, a.error_detail, a.response_excerpt
    FROM nuncio.delivery_attempts a
    JOIN nuncio.webhook_subscriptions s ON s.subscription_key = a.subscription_key
    WHERE s.subscription_uuid = ${place.subscription}::uuid AND a.event_key = ${place.eventKey}::uuid
    ORDER BY a.number DESC, a.started_at DESC LIMIT 100`);
  return rows.map(toAttempt).reverse();
}

const EVENT_COLUMNS = sql`e.event_id, e.event_type, e.user_id, e.user_sequence`;

const EVENT_OF = (source: string) => sql`
  CROSS JOIN LATERAL (
    SELECT * FROM nuncio.events e
    WHERE e.tenant_key = ${sql.raw(source)}.tenant_key AND e.event_key = ${sql.raw(source)}.event_key LIMIT 1
  ) AS e`;

/** Each of the three sources of deliveries, or undefined if none of the states asked for stands in it. */
type Branch = (wanted: SQL, states: readonly DeliveryState[], cut: SQL) => SQL | undefined;

const wants = (states: readonly DeliveryState[], state: DeliveryState) => states.length === 0 || states.includes(state);

const unfinished: Branch = (wanted, states, cut) => {
  const pending = wants(states, "PENDING");
  const delivering = wants(states, "DELIVERING");
  if (!pending && !delivering) return undefined;
  const leased = sql`coalesce(q.lease_expires_at > now(), false)`;
  return sql`(
    SELECT q.event_key, ${EVENT_COLUMNS},
      CASE WHEN ${leased} THEN 'DELIVERING' ELSE 'PENDING' END AS state,
      NULL::smallint AS end_reason, q.attempt,
      CASE WHEN isfinite(q.next_at) THEN extract(epoch FROM q.next_at)::float8 * 1000 END AS next_at_ms,
      extract(epoch FROM q.expires_at)::float8 * 1000 AS expires_at_ms, NULL::float8 AS ended_at_ms
    FROM nuncio.outbox q ${EVENT_OF("q")}
    WHERE q.subscription_key = l.subscription_key AND ${wanted}
      ${pending && delivering ? sql`` : sql`AND ${leased} = ${delivering}`}
    ${cut})`;
};

const givenUp: Branch = (wanted, states, cut) => {
  const codes = END_REASONS.filter((reason) => wants(states, stateOfEnd(reason))).map(toEndReasonCode);
  if (codes.length === 0) return undefined;
  return sql`(
    SELECT d.event_key, ${EVENT_COLUMNS}, 'ENDED' AS state, d.end_reason, d.attempt, NULL::float8 AS next_at_ms,
      NULL::float8 AS expires_at_ms, extract(epoch FROM d.ended_at)::float8 * 1000 AS ended_at_ms
    FROM nuncio.dead_letters d ${EVENT_OF("d")}
    WHERE d.subscription_key = l.subscription_key AND ${wanted} AND ${standsNotIn("outbox", "d")}
      AND d.end_reason IN (${sql.raw(codes.join(", "))})
    ${cut})`;
};

const delivered: Branch = (wanted, states, cut) => {
  if (!wants(states, "DELIVERED")) return undefined;
  return sql`(
    SELECT a.event_key, ${EVENT_COLUMNS}, 'DELIVERED' AS state, NULL::smallint AS end_reason, a.number AS attempt,
      NULL::float8 AS next_at_ms, NULL::float8 AS expires_at_ms,
      extract(epoch FROM a.started_at)::float8 * 1000 + a.duration_ms AS ended_at_ms
    FROM nuncio.delivery_attempts a ${EVENT_OF("a")}
    WHERE a.subscription_key = l.subscription_key AND a.outcome = 1 AND NOT a.stale AND ${wanted}
      AND ${standsNotIn("outbox", "a")} AND ${standsNotIn("dead_letters", "a")}
      AND (
        SELECT true FROM nuncio.delivery_attempts later
        WHERE later.subscription_key = a.subscription_key AND later.event_key = a.event_key
          AND later.number > a.number AND later.outcome = 1 AND NOT later.stale LIMIT 1) IS NULL
    ${cut})`;
};

/**
 * Asked of each row of a page. Not as NOT EXISTS: that is a join to the planner, which then reads all that waits in the lane
 * for the sake of a page of what is done.
 */
function standsNotIn(table: "outbox" | "dead_letters", source: string): SQL {
  return sql.raw(`(SELECT true FROM nuncio.${table} x
    WHERE x.subscription_key = ${source}.subscription_key AND x.event_key = ${source}.event_key LIMIT 1) IS NULL`);
}

/** The conditions on a row of `source`, its lane `l` and its event `e`. Bounds on the key are what the index serves. */
function inFilter(source: SQL, filter: DeliveryFilter, after: DeliveryPlace | undefined, direction: Direction): SQL {
  const conditions: SQL[] = [sql`true`];
  const beyond = sql.raw(direction === "older" ? "<" : ">");
  if (after) {
    conditions.push(sql`${source}.event_key ${beyond}= ${after.eventKey}::uuid
      AND (${source}.event_key ${beyond} ${after.eventKey}::uuid OR l.subscription_uuid ${beyond} ${after.subscription}::uuid)`);
  }
  if (filter.createdFromMs !== undefined) {
    conditions.push(sql`${source}.event_key >= ${leastUuidAt(filter.createdFromMs)}::uuid`);
  }
  if (filter.createdBeforeMs !== undefined) {
    conditions.push(sql`${source}.event_key < ${leastUuidAt(filter.createdBeforeMs)}::uuid`);
  }
  if (filter.eventId !== undefined) {
    conditions.push(sql`${source}.event_key = (
      SELECT i.event_key FROM nuncio.event_ids i WHERE i.tenant_key = l.tenant_key AND i.event_id = ${filter.eventId})`);
  }
  if (filter.userId !== undefined) {
    // By the user's events, and not by walking through everybody's deliveries for those of one.
    const { createdFromMs, createdBeforeMs } = filter;
    const bounds = [
      after && sql`AND u.event_key ${beyond}= ${after.eventKey}::uuid`,
      createdFromMs === undefined ? undefined : sql`AND u.event_key >= ${leastUuidAt(createdFromMs)}::uuid`,
      createdBeforeMs === undefined ? undefined : sql`AND u.event_key < ${leastUuidAt(createdBeforeMs)}::uuid`,
    ].filter((bound) => bound !== undefined);
    conditions.push(sql`${source}.event_key = ANY (ARRAY(
      SELECT u.event_key FROM nuncio.events u
      WHERE u.tenant_key = l.tenant_key AND u.user_id = ${filter.userId} ${sql.join(bounds, sql` `)}))`);
  }
  if (filter.eventTypes.length > 0) {
    const codes = filter.eventTypes.map((type) => sql`${toEventTypeCode(type)}::smallint`);
    conditions.push(sql`e.event_type IN (${sql.join(codes, sql`, `)})`);
  }
  return sql.join(conditions, sql` AND `);
}

/** The place after which `place` itself comes first, in its own lane. */
function justBefore(place: DeliveryPlace): DeliveryPlace {
  return { eventKey: place.eventKey, subscription: "ffffffff-ffff-ffff-ffff-ffffffffffff" as Uuid };
}

type DeliveryRow = {
  subscription_uuid: Uuid;
  event_key: Uuid;
  event_id: string;
  event_type: number;
  user_id: string;
  user_sequence: string;
  /** ENDED: without a 2xx; the reason tells which state that is. */
  state: "PENDING" | "DELIVERING" | "DELIVERED" | "ENDED";
  end_reason: number | null;
  attempt: number;
  next_at_ms: number | null;
  expires_at_ms: number | null;
  ended_at_ms: number | null;
};

function toDelivery(row: DeliveryRow, tenantId: string): Delivery {
  const endReason = row.end_reason === null ? undefined : fromEndReasonCode(row.end_reason);
  return {
    id: formatDeliveryId(row.event_key, row.subscription_uuid),
    tenantId,
    eventKey: row.event_key,
    subscription: row.subscription_uuid,
    eventId: row.event_id,
    eventType: fromEventTypeCode(row.event_type),
    userId: row.user_id,
    userSequence: BigInt(row.user_sequence),
    state: row.state === "ENDED" ? stateOfEnd(endReason as EndReason) : row.state,
    endReason,
    attemptCount: row.attempt,
    nextAttemptAtMs: row.state === "PENDING" ? toWholeMs(row.next_at_ms) : undefined,
    expiresAtMs: toWholeMs(row.expires_at_ms),
    createdAtMs: uuidV7EpochMs(row.event_key),
    endedAtMs: toWholeMs(row.ended_at_ms),
  };
}

/** Postgres reckons in microseconds; a Timestamp made of fractions of a millisecond is not a valid one. */
function toWholeMs(ms: number | null): number | undefined {
  return ms === null ? undefined : Math.floor(ms);
}

type AttemptRow = {
  number: number;
  started_at_ms: number;
  duration_ms: number;
  outcome: number;
  http_status: number | null;
  stale: boolean;
  dns_ms: number | null;
  connect_ms: number | null;
  first_byte_ms: number | null;
  body_ms: number | null;
  error_detail: string | null;
  response_excerpt: string | null;
};

/** The phases that an attempt went through: those of which a time is stored. */
export function toPhases(stored: Readonly<Record<Phase, number | null>>): PhaseDurations {
  return Object.fromEntries(Object.entries(stored).filter(([, ms]) => ms !== null)) as PhaseDurations;
}

function toAttempt(row: AttemptRow): DeliveryAttempt {
  const { dns_ms: dns, connect_ms: connect, first_byte_ms: first_byte, body_ms: body } = row;
  return {
    number: row.number,
    startedAtMs: Math.floor(row.started_at_ms),
    durationMs: row.duration_ms,
    phases: toPhases({ dns, connect, first_byte, body }),
    outcome: fromOutcomeCode(row.outcome),
    httpStatus: row.http_status ?? undefined,
    errorDetail: row.error_detail ?? "",
    responseExcerpt: row.response_excerpt ?? "",
    stale: row.stale,
  };
}
