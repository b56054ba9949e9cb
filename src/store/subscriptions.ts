import { and, count, desc, eq, gt, isNull, lt, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { fromCode, toCode } from "../core/codes.ts";
import type { SealContext, SecretBox } from "../core/encryption.ts";
import { AlreadyExistsError, FailedPreconditionError, NotFoundError, ResourceExhaustedError } from "../core/errors.ts";
import { fromEventTypeCode, toEventTypeCode } from "../core/event.ts";
import { formatSubscriptionId, type Uuid } from "../core/ids.ts";
import { Secret } from "../core/secret.ts";
import {
  CONTENT_TYPES,
  SUBSCRIPTION_ORDERINGS,
  SUBSCRIPTION_STATES,
  type Subscription,
  type SubscriptionSpec,
  type SubscriptionState,
} from "../core/subscription.ts";
import { restartLane, stopLaneClock } from "./lane-states.ts";
import { laneStates, signingSecrets, subscriptionRequests, tenants, webhookSubscriptions } from "./schema.ts";

type Transaction = Parameters<Parameters<PostgresJsDatabase["transaction"]>[0]>[0];
type SubscriptionRow = typeof webhookSubscriptions.$inferSelect;
/** What the workers wrote down; null before they did. */
type LaneState = typeof laneStates.$inferSelect | null;

/** The first key of the advisory locks that claims share and changes of a subscription take alone (`drizzle/0003…`). */
const LANE_LOCK = 7102;

export type CreateSubscription = {
  readonly spec: SubscriptionSpec;
  readonly subscriptionUuid: Uuid;
  readonly signingSecret: Secret;
  /** Makes a replay return what the first call made. */
  readonly request: { readonly id: string; readonly contentHash: Buffer } | undefined;
  readonly maxPerTenant: number;
};

/**
 * Stores a subscription with its signing secret, or finds the one that the same request made before. The limit per
 * tenant is exact: creates of one tenant take turns at the tenant's row.
 */
export async function createSubscription(
  orm: PostgresJsDatabase,
  box: SecretBox,
  tenantId: string,
  { spec, subscriptionUuid, signingSecret, request, maxPerTenant }: CreateSubscription,
): Promise<{ subscription: Subscription; signingSecret: Secret }> {
  return orm.transaction(async (tx) => {
    const tenantKey = await lockTenant(tx, tenantId);
    const made = request && (await findByRequest(tx, tenantKey, request));
    if (made)
      return {
        subscription: toSubscription(made, await readLane(tx, made), tenantId),
        signingSecret: await readSecret(tx, box, tenantId, made),
      };
    await requireRoom(tx, tenantKey, maxPerTenant);

    const context = (purpose: SealContext["purpose"]) => ({ purpose, tenantId, subscriptionId: subscriptionUuid });
    const headerNames = Object.keys(spec.headers);
    const headers =
      headerNames.length > 0 ? box.seal(new Secret(JSON.stringify(spec.headers)), context("headers")) : undefined;
    const [row] = await tx
      .insert(webhookSubscriptions)
      .values({
        tenantKey,
        subscriptionUuid,
        state: toCode(SUBSCRIPTION_STATES, "ENABLED"),
        ordering: toCode(SUBSCRIPTION_ORDERINGS, spec.ordering),
        contentType: toCode(CONTENT_TYPES, spec.contentType),
        eventTypes: spec.eventTypes.map(toEventTypeCode),
        url: spec.url,
        description: spec.description,
        headerNames,
        headersKeyId: headers?.keyId ?? null,
        headersCiphertext: headers?.ciphertext ?? null,
        maxInFlight: spec.maxInFlight ?? null,
        requestsPerSecond: spec.requestsPerSecond ?? null,
      })
      .returning();
    const stored = row as SubscriptionRow;
    await tx.insert(signingSecrets).values({
      subscriptionKey: stored.subscriptionKey,
      tenantKey,
      ...box.seal(signingSecret, context("signing_secret")),
    });
    if (request) {
      const made = { contentHash: request.contentHash, subscriptionKey: stored.subscriptionKey };
      await tx
        .insert(subscriptionRequests)
        .values({ tenantKey, requestId: request.id, ...made })
        .onConflictDoUpdate({
          target: [subscriptionRequests.tenantKey, subscriptionRequests.requestId],
          set: { ...made, createdAt: sql`now()` },
        });
    }
    return { subscription: toSubscription(stored, null, tenantId), signingSecret };
  });
}

async function lockTenant(tx: Transaction, tenantId: string): Promise<number> {
  await tx.insert(tenants).values({ tenantId }).onConflictDoNothing();
  const [row] = await tx
    .select({ tenantKey: tenants.tenantKey })
    .from(tenants)
    .where(eq(tenants.tenantId, tenantId))
    .for("no key update");
  return (row as { tenantKey: number }).tenantKey;
}

async function findByRequest(
  tx: Transaction,
  tenantKey: number,
  request: { id: string; contentHash: Buffer },
): Promise<SubscriptionRow | undefined> {
  const [found] = await tx
    .select({ contentHash: subscriptionRequests.contentHash, subscription: webhookSubscriptions })
    .from(subscriptionRequests)
    .innerJoin(webhookSubscriptions, eq(webhookSubscriptions.subscriptionKey, subscriptionRequests.subscriptionKey))
    .where(
      and(
        eq(subscriptionRequests.tenantKey, tenantKey),
        eq(subscriptionRequests.requestId, request.id),
        gt(subscriptionRequests.createdAt, sql`now() - interval '24 hours'`),
      ),
    );
  if (!found) return undefined;
  if (!found.contentHash.equals(request.contentHash)) {
    throw new AlreadyExistsError("REQUEST_ID_REUSED", "request_id: stands for another request");
  }
  return found.subscription;
}

async function requireRoom(tx: Transaction, tenantKey: number, maxPerTenant: number): Promise<void> {
  const [row] = await tx
    .select({ existing: count() })
    .from(webhookSubscriptions)
    .where(and(eq(webhookSubscriptions.tenantKey, tenantKey), isNull(webhookSubscriptions.deletedAt)));
  if ((row?.existing ?? 0) < maxPerTenant) return;
  throw new ResourceExhaustedError("TOO_MANY_SUBSCRIPTIONS", `the tenant has ${maxPerTenant} subscriptions already`);
}

async function readSecret(tx: Transaction, box: SecretBox, tenantId: string, row: SubscriptionRow): Promise<Secret> {
  const [sealed] = await tx
    .select({ keyId: signingSecrets.keyId, ciphertext: signingSecrets.ciphertext })
    .from(signingSecrets)
    .where(and(eq(signingSecrets.subscriptionKey, row.subscriptionKey), isNull(signingSecrets.expiresAt)));
  if (!sealed) throw new Error(`subscription ${row.subscriptionUuid} has no current signing secret`);
  return box.unseal(sealed, { purpose: "signing_secret", tenantId, subscriptionId: row.subscriptionUuid });
}

export async function getSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<Subscription> {
  const { subscription, lane } = await findRow(orm, tenantId, subscriptionUuid);
  return toSubscription(subscription, lane, tenantId);
}

/** Up to `limit` subscriptions, newest first, that come after `after` in that order. */
export async function listSubscriptions(
  orm: PostgresJsDatabase,
  tenantId: string,
  { after, limit }: { after: Uuid | undefined; limit: number },
): Promise<Subscription[]> {
  const rows = await orm
    .select({ subscription: webhookSubscriptions, lane: laneStates })
    .from(webhookSubscriptions)
    .innerJoin(tenants, eq(tenants.tenantKey, webhookSubscriptions.tenantKey))
    .leftJoin(laneStates, eq(laneStates.subscriptionKey, webhookSubscriptions.subscriptionKey))
    .where(
      and(
        eq(tenants.tenantId, tenantId),
        isNull(webhookSubscriptions.deletedAt),
        after === undefined ? undefined : lt(webhookSubscriptions.subscriptionUuid, after),
      ),
    )
    .orderBy(desc(webhookSubscriptions.subscriptionUuid))
    .limit(limit);
  return rows.map((row) => toSubscription(row.subscription, row.lane, tenantId));
}

/** Holds deliveries back. Once it returns, no claim commits that has not seen it. */
export async function pauseSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<Subscription> {
  return changeSubscription(
    orm,
    tenantId,
    subscriptionUuid,
    (state) => {
      if (state === "DISABLED") {
        throw new FailedPreconditionError("SUBSCRIPTION_DISABLED", "the subscription is disabled; resume it first");
      }
      return { state: toCode(SUBSCRIPTION_STATES, "PAUSED"), stateReason: "paused_by_request" };
    },
    stopLaneClock,
  );
}

/** Sends again, from PAUSED or DISABLED. Returns the lane as well, for the wake-up that follows the commit. */
export async function resumeSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<{ subscription: Subscription; lane: number }> {
  const subscription = await changeSubscription(
    orm,
    tenantId,
    subscriptionUuid,
    () => ({ state: toCode(SUBSCRIPTION_STATES, "ENABLED"), stateReason: "" }),
    restartLane,
  );
  return { subscription, lane: (await findRow(orm, tenantId, subscriptionUuid)).subscription.subscriptionKey };
}

/** Marks it deleted: nothing new is fanned out or claimed. A worker cancels what is pending. */
export async function deleteSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<void> {
  await changeSubscription(orm, tenantId, subscriptionUuid, () => ({ deletedAt: sql`now()` }));
}

/**
 * Changes a subscription under its lane's exclusive lock. Claims share that lock until they commit: when this returns,
 * every claim that saw the old state has committed, and every later one sees the new state.
 */
async function changeSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
  change: (state: SubscriptionState) => Parameters<ReturnType<PostgresJsDatabase["update"]>["set"]>[0],
  changeLane: (tx: Transaction, lane: SubscriptionRow) => Promise<void> = async () => undefined,
): Promise<Subscription> {
  return orm.transaction(async (tx) => {
    const { subscriptionKey } = (await findRow(tx, tenantId, subscriptionUuid)).subscription;
    await tx.execute(sql`SELECT pg_advisory_xact_lock(${LANE_LOCK}, ${subscriptionKey})`);
    const current = (await findRow(tx, tenantId, subscriptionUuid)).subscription;
    const [row] = await tx
      .update(webhookSubscriptions)
      .set({
        ...change(fromCode(SUBSCRIPTION_STATES, current.state)),
        revision: sql`${webhookSubscriptions.revision} + 1`,
        updatedAt: sql`now()`,
      })
      .where(eq(webhookSubscriptions.subscriptionKey, subscriptionKey))
      .returning();
    await changeLane(tx, current);
    return toSubscription(row as SubscriptionRow, await readLane(tx, current), tenantId);
  });
}

async function readLane(tx: Transaction, { subscriptionKey }: SubscriptionRow): Promise<LaneState> {
  const [lane] = await tx.select().from(laneStates).where(eq(laneStates.subscriptionKey, subscriptionKey));
  return lane ?? null;
}

async function findRow(
  orm: PostgresJsDatabase | Transaction,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<{ subscription: SubscriptionRow; lane: LaneState }> {
  const [row] = await orm
    .select({ subscription: webhookSubscriptions, lane: laneStates })
    .from(webhookSubscriptions)
    .innerJoin(tenants, eq(tenants.tenantKey, webhookSubscriptions.tenantKey))
    .leftJoin(laneStates, eq(laneStates.subscriptionKey, webhookSubscriptions.subscriptionKey))
    .where(
      and(
        eq(tenants.tenantId, tenantId),
        eq(webhookSubscriptions.subscriptionUuid, subscriptionUuid),
        isNull(webhookSubscriptions.deletedAt),
      ),
    );
  if (!row) throw new NotFoundError("SUBSCRIPTION_NOT_FOUND", "there is no such subscription in this tenant");
  return row;
}

function toSubscription(row: SubscriptionRow, lane: LaneState, tenantId: string): Subscription {
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
    createdAt: row.createdAt,
    updatedAt: row.updatedAt,
    maxInFlight: row.maxInFlight ?? undefined,
    requestsPerSecond: row.requestsPerSecond ?? undefined,
    lastSuccessAt: lane?.lastSuccessAt ?? undefined,
    lastFailure: lane?.lastFailureAt ? { at: lane.lastFailureAt, detail: lane.lastFailure ?? "" } : undefined,
    consecutiveFailures: lane?.consecutiveFailures ?? 0,
  };
}
