import { sql } from "drizzle-orm";
import {
  bigint,
  boolean,
  customType,
  index,
  integer,
  pgSchema,
  primaryKey,
  smallint,
  text,
  timestamp,
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
  },
  (table) => [primaryKey({ columns: [table.tenantKey, table.eventKey] })],
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
 * One row per unfinished delivery, the only hot and mutable table. `next_at` is when a claim may take the row: a lease
 * moves it to its own end, so an expired lease is simply due again and no reaper is needed.
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
  },
  (table) => [
    primaryKey({ columns: [table.subscriptionKey, table.eventKey] }),
    index("outbox_due").on(table.subscriptionKey, table.nextAt),
    index("outbox_order")
      .on(table.userKey, table.subscriptionKey, table.userSequence)
      .where(sql`${table.userKey} IS NOT NULL`),
  ],
);

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
