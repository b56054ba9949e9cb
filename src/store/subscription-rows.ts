import { and, eq, isNull, type SQL, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { fromCode, toCode } from "../core/codes.ts";
import type { SealContext, SecretBox } from "../core/encryption.ts";
import { NotFoundError } from "../core/errors.ts";
import { fromEventTypeCode, toEventTypeCode } from "../core/event.ts";
import { formatSubscriptionId, type Uuid } from "../core/ids.ts";
import { Secret } from "../core/secret.ts";
import {
  CONTENT_TYPES,
  SUBSCRIPTION_ORDERINGS,
  SUBSCRIPTION_STATES,
  type Subscription,
  type SubscriptionSpec,
} from "../core/subscription.ts";
import { laneStates, signingSecrets, tenants, webhookSubscriptions } from "./schema.ts";

// A subscription between the tables and `core/subscription.ts`.

export type Transaction = Parameters<Parameters<PostgresJsDatabase["transaction"]>[0]>[0];
export type SubscriptionRow = typeof webhookSubscriptions.$inferSelect;

/** A subscription with what stands about it in other tables. */
export type FullRow = {
  readonly subscription: SubscriptionRow;
  /** What the workers wrote down; null before they did. */
  readonly lane: typeof laneStates.$inferSelect | null;
  /** Milliseconds since 1970; null while only the current secret signs. */
  readonly replacedSecretExpiresMs: number | null;
};

/** The columns of `FullRow`, for a query over subscriptions that is joined with their lanes. */
const FULL_ROW = {
  subscription: webhookSubscriptions,
  lane: laneStates,
  replacedSecretExpiresMs: sql<number | null>`(
    SELECT extract(epoch FROM max(k.expires_at))::float8 * 1000 FROM ${signingSecrets} k
    WHERE k.subscription_key = ${webhookSubscriptions.subscriptionKey} AND k.expires_at > now())`,
};

export async function findRow(
  orm: PostgresJsDatabase | Transaction,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<FullRow> {
  const [row] = await selectRows(
    orm,
    and(
      eq(tenants.tenantId, tenantId),
      eq(webhookSubscriptions.subscriptionUuid, subscriptionUuid),
      isNull(webhookSubscriptions.deletedAt),
    ),
  );
  if (!row) throw new NotFoundError("SUBSCRIPTION_NOT_FOUND", "there is no such subscription in this tenant");
  return row;
}

export function selectRows(orm: PostgresJsDatabase | Transaction, condition: SQL | undefined) {
  return orm
    .select(FULL_ROW)
    .from(webhookSubscriptions)
    .innerJoin(tenants, eq(tenants.tenantKey, webhookSubscriptions.tenantKey))
    .leftJoin(laneStates, eq(laneStates.subscriptionKey, webhookSubscriptions.subscriptionKey))
    .where(condition);
}

/** What its owner chose, as columns, but for the headers. */
export function toColumns(spec: Omit<SubscriptionSpec, "headers">) {
  return {
    ordering: toCode(SUBSCRIPTION_ORDERINGS, spec.ordering),
    contentType: toCode(CONTENT_TYPES, spec.contentType),
    eventTypes: spec.eventTypes.map(toEventTypeCode),
    url: spec.url,
    description: spec.description,
    maxInFlight: spec.maxInFlight ?? null,
    requestsPerSecond: spec.requestsPerSecond ?? null,
    retryDelaysMs: spec.retryDelaysMs === undefined ? null : [...spec.retryDelaysMs],
  };
}

/** The headers as columns, their values sealed. */
export function toHeaderColumns(
  headers: SubscriptionSpec["headers"],
  box: SecretBox,
  owner: Omit<SealContext, "purpose">,
) {
  const headerNames = Object.keys(headers);
  if (headerNames.length === 0) return { headerNames, headersKeyId: null, headersCiphertext: null };
  const sealed = box.seal(new Secret(JSON.stringify(headers)), { purpose: "headers", ...owner });
  return { headerNames, headersKeyId: sealed.keyId, headersCiphertext: sealed.ciphertext };
}

export function toSubscription(
  { subscription: row, lane, replacedSecretExpiresMs }: FullRow,
  tenantId: string,
): Subscription {
  return {
    id: formatSubscriptionId(row.subscriptionUuid),
    tenantId,
    url: row.url,
    eventTypes: row.eventTypes.map(fromEventTypeCode),
    description: row.description,
    state: fromCode(SUBSCRIPTION_STATES, row.state),
    stateReason: row.stateReason,
    ordering: fromCode(SUBSCRIPTION_ORDERINGS, row.ordering),
    contentType: fromCode(CONTENT_TYPES, row.contentType),
    headerNames: row.headerNames,
    replacedSecretExpiresAt: replacedSecretExpiresMs === null ? undefined : new Date(replacedSecretExpiresMs),
    createdAt: row.createdAt,
    updatedAt: row.updatedAt,
    maxInFlight: row.maxInFlight ?? undefined,
    requestsPerSecond: row.requestsPerSecond ?? undefined,
    retryDelaysMs: row.retryDelaysMs ?? undefined,
    lastSuccessAt: lane?.lastSuccessAt ?? undefined,
    lastFailure: lane?.lastFailureAt ? { at: lane.lastFailureAt, detail: lane.lastFailure ?? "" } : undefined,
    consecutiveFailures: lane?.consecutiveFailures ?? 0,
  };
}
