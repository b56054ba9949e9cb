import { and, count, desc, eq, gt, isNull, lt, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { toCode } from "../core/codes.ts";
import type { SecretBox } from "../core/encryption.ts";
import { AlreadyExistsError, ResourceExhaustedError } from "../core/errors.ts";
import type { Uuid } from "../core/ids.ts";
import type { Secret } from "../core/secret.ts";
import { SUBSCRIPTION_STATES, type Subscription, type SubscriptionSpec } from "../core/subscription.ts";
import { signingSecrets, subscriptionRequests, tenants, webhookSubscriptions } from "./schema.ts";
import {
  findRow,
  type SubscriptionRow,
  selectRows,
  type Transaction,
  toColumns,
  toHeaderColumns,
  toSubscription,
} from "./subscription-rows.ts";

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
    const earlier = request && (await findByRequest(tx, tenantKey, request));
    if (earlier) {
      return {
        subscription: toSubscription(await findRow(tx, tenantId, earlier.subscriptionUuid), tenantId),
        signingSecret: await readSecret(tx, box, tenantId, earlier),
      };
    }
    await requireRoom(tx, tenantKey, maxPerTenant);

    const owner = { tenantId, subscriptionId: subscriptionUuid };
    const [row] = await tx
      .insert(webhookSubscriptions)
      .values({
        tenantKey,
        subscriptionUuid,
        state: toCode(SUBSCRIPTION_STATES, "ENABLED"),
        ...toColumns(spec),
        ...toHeaderColumns(spec.headers, box, owner),
      })
      .returning();
    const stored = row as SubscriptionRow;
    await tx.insert(signingSecrets).values({
      subscriptionKey: stored.subscriptionKey,
      tenantKey,
      ...box.seal(signingSecret, { purpose: "signing_secret", ...owner }),
    });
    if (request) {
      const answer = { contentHash: request.contentHash, subscriptionKey: stored.subscriptionKey };
      await tx
        .insert(subscriptionRequests)
        .values({ tenantKey, requestId: request.id, ...answer })
        .onConflictDoUpdate({
          target: [subscriptionRequests.tenantKey, subscriptionRequests.requestId],
          set: { ...answer, createdAt: sql`now()` },
        });
    }
    const made = { subscription: stored, lane: null, replacedSecretExpiresMs: null };
    return { subscription: toSubscription(made, tenantId), signingSecret };
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
  return toSubscription(await findRow(orm, tenantId, subscriptionUuid), tenantId);
}

/** Up to `limit` subscriptions, newest first, that come after `after` in that order. */
export async function listSubscriptions(
  orm: PostgresJsDatabase,
  tenantId: string,
  { after, limit }: { after: Uuid | undefined; limit: number },
): Promise<Subscription[]> {
  const condition = and(
    eq(tenants.tenantId, tenantId),
    isNull(webhookSubscriptions.deletedAt),
    after === undefined ? undefined : lt(webhookSubscriptions.subscriptionUuid, after),
  );
  const rows = await selectRows(orm, condition).orderBy(desc(webhookSubscriptions.subscriptionUuid)).limit(limit);
  return rows.map((row) => toSubscription(row, tenantId));
}
