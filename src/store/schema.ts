import { sql } from "drizzle-orm";
import {
  bigint,
  boolean,
  customType,
  index,
  integer,
  interval,
  pgSchema,
  primaryKey,
  smallint,
  text,
  timestamp,
  uniqueIndex,
  uuid,
} from "drizzle-orm/pg-core";
import type { Uuid } from "../core/ids.ts";

/**
 * The tables. Partitioning, storage settings, functions and grants stand in `drizzle/` beside each table's DDL, since
 * drizzle-kit cannot write them. Times are `timestamptz`, set by the database's clock.
 */
export const nuncio = pgSchema("nuncio");

const bytea = customType<{ data: Buffer }>({ dataType: () => "bytea" });
const time = (name: string) => timestamp(name, { withTimezone: true, mode: "date" });

/** A tenant appears at its first use. The small key keeps rows and indexes of the hot tables narrow. */
export const tenants = nuncio.table("tenants", {
  tenantKey: integer("tenant_key").primaryKey().generatedAlwaysAsIdentity(),
  tenantId: text("tenant_id").notNull().unique(),
  createdAt: time("created_at").notNull().defaultNow(),
});

/** Accepted events, the payload once. Partitioned by day of `event_key`, a UUIDv7 that the append function makes. */
export const events = nuncio.table(
  "events",
  {
    eventKey: uuid("event_key").$type<Uuid>().notNull(),
    tenantKey: integer("tenant_key").notNull(),
    eventType: smallint("event_type").notNull(),
    userSequence: bigint("user_sequence", { mode: "bigint" }).notNull(),
    eventId: text("event_id").notNull(),
    userId: text("user_id").notNull(),
    traceparent: text("traceparent"),
    /** The exact bytes that are signed and sent; text and not jsonb, which would rewrite them. */
    body: text("body").notNull(),
    /** Its user was erased: the body holds ids, type, sequence and times alone, and is not redriven. */
    erased: boolean("erased").notNull().default(false),
  },
  (table) => [
    primaryKey({ columns: [table.tenantKey, table.eventKey] }),
    // A user's events: for whoever filters by user, for what a redrive would overtake, and for erasure.
    index("events_user").on(table.tenantKey, table.userId, table.eventKey),
  ],
);

/** Which ids a tenant has used, and for what content. Outside the partitions: uniqueness must span them. */
export const eventIds = nuncio.table(
  "event_ids",
  {
    eventKey: uuid("event_key").$type<Uuid>().notNull(),
    tenantKey: integer("tenant_key").notNull(),
    eventId: text("event_id").notNull(),
    /** SHA-256 of the content; null once the user was erased, when any content counts as the same. */
    contentHash: bytea("content_hash"),
  },
  (table) => [
    primaryKey({ columns: [table.tenantKey, table.eventId] }),
    // For retention alone: an id goes when its payload does.
    index("event_ids_event_key").on(table.eventKey),
  ],
);

export const webhookSubscriptions = nuncio.table(
  "webhook_subscriptions",
  {
    subscriptionKey: integer("subscription_key").primaryKey().generatedAlwaysAsIdentity(),
    tenantKey: integer("tenant_key")
      .notNull()
      .references(() => tenants.tenantKey),
    /** The UUID in `sub_…`. */
    subscriptionUuid: uuid("subscription_uuid").$type<Uuid>().notNull().unique(),
    /** Grows with every change that a worker has to see. */
    revision: integer("revision").notNull().default(1),
    state: smallint("state").notNull(),
    ordering: smallint("ordering").notNull(),
    contentType: smallint("content_type").notNull(),
    eventTypes: smallint("event_types").array().notNull(),
    url: text("url").notNull(),
    description: text("description").notNull(),
    stateReason: text("state_reason").notNull().default(""),
    headerNames: text("header_names").array().notNull(),
    /** A JSON object of names and values, sealed. Null when there are none. */
    headersKeyId: text("headers_key_id"),
    headersCiphertext: bytea("headers_ciphertext"),
    createdAt: time("created_at").notNull().defaultNow(),
    updatedAt: time("updated_at").notNull().defaultNow(),
    deletedAt: time("deleted_at"),
    /** Requests at once; null: the operator's `MAX_IN_FLIGHT`, which caps it in any case. */
    maxInFlight: integer("max_in_flight"),
    /** Requests per second, over all workers; null: no limit. */
    requestsPerSecond: integer("requests_per_second"),
    /** Delays before the second, third … attempt, in milliseconds; null: the operator's schedule. */
    retryDelaysMs: integer("retry_delays_ms").array(),
  },
  (table) => [index("webhook_subscriptions_tenant").on(table.tenantKey, table.subscriptionUuid)],
);

/** Signing secrets, sealed. Several per subscription while a rotation lasts. */
export const signingSecrets = nuncio.table(
  "signing_secrets",
  {
    secretKey: integer("secret_key").primaryKey().generatedAlwaysAsIdentity(),
    subscriptionKey: integer("subscription_key")
      .notNull()
      .references(() => webhookSubscriptions.subscriptionKey),
    tenantKey: integer("tenant_key").notNull(),
    keyId: text("key_id").notNull(),
    ciphertext: bytea("ciphertext").notNull(),
    createdAt: time("created_at").notNull().defaultNow(),
    /** When it stops signing; null while it is the current one. */
    expiresAt: time("expires_at"),
  },
  (table) => [index("signing_secrets_subscription").on(table.subscriptionKey)],
);

/** Which create requests were answered, for 24 hours. */
export const subscriptionRequests = nuncio.table(
  "subscription_requests",
  {
    tenantKey: integer("tenant_key").notNull(),
    requestId: text("request_id").notNull(),
    contentHash: bytea("content_hash").notNull(),
    subscriptionKey: integer("subscription_key").notNull(),
    createdAt: time("created_at").notNull().defaultNow(),
  },
  (table) => [primaryKey({ columns: [table.tenantKey, table.requestId] })],
);

/**
 * Test requests on their way from a server to a worker and back, one per subscription at most. The worker's answer stands
 * in the columns of an attempt until the server has read it; then the row goes.
 */
export const subscriptionTests = nuncio.table("subscription_tests", {
  subscriptionKey: integer("subscription_key").primaryKey(),
  tenantKey: integer("tenant_key").notNull(),
  testUuid: uuid("test_uuid").$type<Uuid>().notNull(),
  requestedAt: time("requested_at").notNull().defaultNow(),
  takenAt: time("taken_at"),
  startedAt: time("started_at"),
  durationMs: integer("duration_ms"),
  outcome: smallint("outcome"),
  httpStatus: smallint("http_status"),
  dnsMs: integer("dns_ms"),
  connectMs: integer("connect_ms"),
  firstByteMs: integer("first_byte_ms"),
  bodyMs: integer("body_ms"),
  errorDetail: text("error_detail"),
  responseExcerpt: text("response_excerpt"),
});

/**
 * One row per unfinished delivery, the only hot and mutable table. `next_at` is from when on a claim may take the row, unless
 * a live lease is on it: an expired one counts for nothing, so no reaper is needed. A claim changes no indexed column (ADR 13).
 */
export const outbox = nuncio.table(
  "outbox",
  {
    eventKey: uuid("event_key").$type<Uuid>().notNull(),
    nextAt: time("next_at").notNull(),
    expiresAt: time("expires_at").notNull(),
    leaseExpiresAt: time("lease_expires_at"),
    /** Random per claim: the fence. Not a counter, which a crash of Postgres could hand out twice. */
    leaseToken: bigint("lease_token", { mode: "bigint" }),
    tenantKey: integer("tenant_key").notNull(),
    subscriptionKey: integer("subscription_key").notNull(),
    /** Claims so far: numbers the requests. */
    attempt: smallint("attempt").notNull().default(0),
    /** Recorded failures: the place in the retry schedule. */
    failures: smallint("failures").notNull().default(0),
    /** Claims in a row that ended without a record, the running one not counted. */
    lostClaims: smallint("lost_claims").notNull().default(0),
    /**
     * The user, as 64 bits (`nuncio.user_key`), and the event's place in the user's order and its type: all null for a
     * delivery that stands outside the order. Only the first of a (subscription, user) is ever due; the others wait behind
     * it at an infinite `next_at`, out of every claim's sight.
     */
    userKey: bigint("user_key", { mode: "bigint" }),
    userSequence: bigint("user_sequence", { mode: "bigint" }),
    eventType: smallint("event_type"),
    /** Since when a follower waits, or the first of its user fails, by the lane's own clock (`laneStates`). */
    heldFrom: time("held_from"),
    /** Asked for once more: outside the order, and each request says so. */
    redrive: boolean("redrive").notNull().default(false),
  },
  (table) => [
    primaryKey({ columns: [table.subscriptionKey, table.eventKey] }),
    // Not of what waits behind another. And so only a statement that says `next_at < 'infinity'` can be served by it: one that
    // looks for a single row of a lane never is, whatever the statistics of a table that empties and refills make of it.
    index("outbox_due").on(table.subscriptionKey, table.nextAt).where(sql`${table.nextAt} < 'infinity'`),
    index("outbox_order")
      .on(table.userKey, table.subscriptionKey, table.userSequence)
      .where(sql`${table.userKey} IS NOT NULL`),
    // Tells a bulk redrive how many of its rows are still pending. Empty on most days.
    index("outbox_redrive").on(table.subscriptionKey).where(sql`${table.redrive}`),
  ],
);

/**
 * The newest row that knows its lanes says up to which sequence nothing is pending any more that keeps an order, but in those. So an
 * append need not look for an earlier event of a user among all that has ended (ADR 14). Of no tenant.
 */
export const orderFloors = nuncio.table("order_floors", {
  userSequence: bigint("user_sequence", { mode: "bigint" }).primaryKey(),
  /** Null: noted, and not yet known whether it may be a floor. */
  lanesBehind: integer("lanes_behind").array(),
});

/**
 * Bulk redrives. A worker carries one out step by step; each step, its rows and the job's progress are one transaction, so
 * that whoever dies in it has done nothing and whoever comes next goes on.
 */
export const redrives = nuncio.table(
  "redrives",
  {
    redriveUuid: uuid("redrive_uuid").$type<Uuid>().primaryKey(),
    tenantKey: integer("tenant_key").notNull(),
    subscriptionKey: integer("subscription_key").notNull(),
    state: smallint("state").notNull(),
    /** Makes a replay of the request return this job. */
    requestId: text("request_id"),
    contentHash: bytea("content_hash").notNull(),
    /** Codes of delivery states; empty: see `includeMissed`. */
    states: smallint("states").array().notNull(),
    eventTypes: smallint("event_types").array().notNull(),
    includeMissed: boolean("include_missed").notNull(),
    includeOvertaken: boolean("include_overtaken").notNull(),
    /** The range of `event_key`: from the first, inclusive, up to the second, exclusive. */
    fromKey: uuid("from_key").$type<Uuid>().notNull(),
    toKey: uuid("to_key").$type<Uuid>().notNull(),
    /** The last event that was looked at. */
    scannedKey: uuid("scanned_key").$type<Uuid>(),
    scannedCount: bigint("scanned_count", { mode: "number" }).notNull().default(0),
    redrivenCount: bigint("redriven_count", { mode: "number" }).notNull().default(0),
    overtakenCount: bigint("overtaken_count", { mode: "number" }).notNull().default(0),
    createdAt: time("created_at").notNull().defaultNow(),
    /** When a worker last made a step or found that it has to wait: whoever waits longest is next. */
    steppedAt: time("stepped_at").notNull().defaultNow(),
    endedAt: time("ended_at"),
  },
  (table) => [
    uniqueIndex("redrives_request").on(table.tenantKey, table.requestId),
    uniqueIndex("redrives_running").on(table.subscriptionKey).where(sql`${table.state} = 1`),
    index("redrives_ended").on(table.endedAt),
  ],
);

/**
 * What the workers know of a lane, for each other and for whoever asks: hints, and never what keeps a delivery safe. A lane
 * without a row is healthy and was never held.
 */
export const laneStates = nuncio.table("lane_states", {
  subscriptionKey: integer("subscription_key").primaryKey(),
  tenantKey: integer("tenant_key").notNull(),
  /**
   * The lane's own clock stands while the subscription is paused or disabled, or its breaker is open. It reads
   * `coalesce(stopped_since, now()) - stopped_for`, and is what `order_hold` is measured with.
   */
  stoppedSince: time("stopped_since"),
  stoppedFor: interval("stopped_for").notNull().default("0"),
  /** The receiver asked for silence until then (Retry-After). */
  heldUntil: time("held_until"),
  /** The breaker is open, and lets one delivery through at this time; null while it is closed. */
  breakerUntil: time("breaker_until"),
  /** How often in a row the breaker has opened. */
  breakerTrips: smallint("breaker_trips").notNull().default(0),
  /** When it began to send again, after which what waited is spread over a minute. */
  recoveringSince: time("recovering_since"),
  lastSuccessAt: time("last_success_at"),
  lastFailureAt: time("last_failure_at"),
  lastFailure: text("last_failure"),
  consecutiveFailures: integer("consecutive_failures").notNull().default(0),
  /** The first failure since the last success. */
  failingSince: time("failing_since"),
  /** It was resumed after trouble, and nobody has been told yet that it succeeds again. */
  recoveryDue: boolean("recovery_due").notNull().default(false),
});

/** What each attempt met; append-only, partitioned by day of `started_at`. A delivered delivery lives on only here. */
export const deliveryAttempts = nuncio.table(
  "delivery_attempts",
  {
    eventKey: uuid("event_key").$type<Uuid>().notNull(),
    startedAt: time("started_at").notNull(),
    tenantKey: integer("tenant_key").notNull(),
    subscriptionKey: integer("subscription_key").notNull(),
    durationMs: integer("duration_ms").notNull(),
    number: smallint("number").notNull(),
    outcome: smallint("outcome").notNull(),
    httpStatus: smallint("http_status"),
    stale: boolean("stale").notNull(),
    dnsMs: integer("dns_ms"),
    connectMs: integer("connect_ms"),
    firstByteMs: integer("first_byte_ms"),
    bodyMs: integer("body_ms"),
    errorDetail: text("error_detail"),
    responseExcerpt: text("response_excerpt"),
  },
  (table) => [index("delivery_attempts_delivery").on(table.subscriptionKey, table.eventKey, table.number)],
);

/** Deliveries that ended without a 2xx, cancelled ones included. */
export const deadLetters = nuncio.table(
  "dead_letters",
  {
    eventKey: uuid("event_key").$type<Uuid>().notNull(),
    endedAt: time("ended_at").notNull().defaultNow(),
    tenantKey: integer("tenant_key").notNull(),
    subscriptionKey: integer("subscription_key").notNull(),
    attempt: smallint("attempt").notNull(),
    endReason: smallint("end_reason").notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.subscriptionKey, table.eventKey] }),
    index("dead_letters_ended").on(table.endedAt),
  ],
);

/** Erasures of users, running and done: the record that they were made. They name the user by id alone. */
export const erasures = nuncio.table(
  "erasures",
  {
    erasureUuid: uuid("erasure_uuid").$type<Uuid>().primaryKey(),
    tenantKey: integer("tenant_key").notNull(),
    userId: text("user_id").notNull(),
    state: smallint("state").notNull(),
    erasedCount: bigint("erased_count", { mode: "number" }).notNull().default(0),
    cancelledCount: bigint("cancelled_count", { mode: "number" }).notNull().default(0),
    /** Events accepted up to here; asking again while it runs moves it on. */
    eraseBefore: time("erase_before").notNull().defaultNow(),
    /** How far this pass is, which goes from the newest event back; null at its beginning. */
    scannedKey: uuid("scanned_key").$type<Uuid>(),
    /** Whether something was being sent when this pass came by, so that another one has to follow. */
    leftBehind: boolean("left_behind").notNull().default(false),
    createdAt: time("created_at").notNull().defaultNow(),
    /** When a worker last made a step or found that it has to wait. */
    steppedAt: time("stepped_at").notNull().defaultNow(),
    endedAt: time("ended_at"),
  },
  (table) => [uniqueIndex("erasures_running").on(table.tenantKey, table.userId).where(sql`${table.state} = 1`)],
);

/** The workers that live, by their heartbeats: who owns which lane follows from it. Of no tenant. */
export const workers = nuncio.table("workers", {
  workerUuid: uuid("worker_uuid").$type<Uuid>().primaryKey(),
  heartbeatAt: time("heartbeat_at").notNull(),
});

/**
 * What an operator should know of: one row per subscription, type, reason and hour, with a count. A dead letter counts here
 * in the transaction that makes it, by a trigger that nobody can forget to call.
 */
export const operationalEvents = nuncio.table(
  "operational_events",
  {
    operationalEventUuid: uuid("operational_event_uuid").$type<Uuid>().primaryKey(),
    tenantKey: integer("tenant_key").notNull(),
    subscriptionKey: integer("subscription_key").notNull(),
    type: smallint("type").notNull(),
    /** What the type makes of it: an end reason, a reason to disable, or 0. */
    reason: smallint("reason").notNull(),
    hour: time("hour").notNull(),
    count: integer("count").notNull(),
    firstAt: time("first_at").notNull(),
    lastAt: time("last_at").notNull(),
  },
  (table) => [
    uniqueIndex("operational_events_once").on(table.subscriptionKey, table.type, table.reason, table.hour),
    index("operational_events_tenant").on(table.tenantKey, table.operationalEventUuid),
    index("operational_events_last").on(table.lastAt),
  ],
);
