import { and, count, eq, isNull, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { fromCode, toCode } from "../core/codes.ts";
import type { SecretBox } from "../core/encryption.ts";
import { FailedPreconditionError } from "../core/errors.ts";
import type { Uuid } from "../core/ids.ts";
import type { Secret } from "../core/secret.ts";
import { SUBSCRIPTION_STATES, type Subscription, type SubscriptionSpec } from "../core/subscription.ts";
import { restartLane, stopLaneClock } from "./lane-states.ts";
import { signingSecrets, webhookSubscriptions } from "./schema.ts";
import {
  type FullRow,
  findRow,
  type SubscriptionRow,
  type Transaction,
  toColumns,
  toHeaderColumns,
  toSubscription,
} from "./subscription-rows.ts";

/** The first key of the advisory locks that claims share and changes of a subscription take alone (`drizzle/0003…`). */
const LANE_LOCK = 7102;

/** What a subscription was changed to, and its lane for the wake-up that follows the commit. */
export type Changed = { readonly subscription: Subscription; readonly lane: number };

type Columns = Parameters<ReturnType<PostgresJsDatabase["update"]>["set"]>[0];

/** The parts of a subscription that its owner changes, each as a whole. */
export type SubscriptionChange = Partial<SubscriptionSpec>;

/**
 * Replaces what `change` names. A member that is there and undefined goes back to its default. A new URL is a new beginning
 * for the lane, as Resume is.
 */
export async function updateSubscription(
  orm: PostgresJsDatabase,
  box: SecretBox,
  tenantId: string,
  subscriptionUuid: Uuid,
  change: SubscriptionChange,
): Promise<Changed> {
  const owner = { tenantId, subscriptionId: subscriptionUuid };
  return changeSubscription(orm, tenantId, subscriptionUuid, async (tx, full) => {
    const current = toSubscription(full, tenantId);
    const isNewUrl = change.url !== undefined && change.url !== current.url;
    // Another receiver: what was wrong with the old one is nothing that this one recovers from.
    if (isNewUrl) await restartLane(tx, full.subscription, { wasDisabled: false });
    if (isNewUrl && current.state !== "ENABLED") await stopLaneClock(tx, full.subscription);
    return {
      ...toColumns({ ...current, ...change }),
      ...(change.headers === undefined ? {} : toHeaderColumns(change.headers, box, owner)),
    };
  });
}

/** More secrets than this do not sign at once. */
const MOST_SECRETS = 5;

/** Makes `secret` the current one; the one before signs on for `graceMs`. 0 ends every replaced secret at once. */
export async function rotateSecret(
  orm: PostgresJsDatabase,
  box: SecretBox,
  tenantId: string,
  subscriptionUuid: Uuid,
  { secret, graceMs }: { secret: Secret; graceMs: number },
): Promise<Changed> {
  return changeSubscription(
    orm,
    tenantId,
    subscriptionUuid,
    async (tx, { subscription: { subscriptionKey, tenantKey } }) => {
      const ofSubscription = eq(signingSecrets.subscriptionKey, subscriptionKey);
      const [live] = await tx
        .select({ count: count() })
        .from(signingSecrets)
        .where(and(ofSubscription, sql`(${signingSecrets.expiresAt} IS NULL OR ${signingSecrets.expiresAt} > now())`));
      if (graceMs > 0 && (live?.count ?? 0) >= MOST_SECRETS) {
        const message = `${MOST_SECRETS} secrets sign already; wait until one has ended, or end all replaced ones with a grace_period of 0`;
        throw new FailedPreconditionError("TOO_MANY_SECRETS", message);
      }
      const end = sql`now() + ${graceMs} * interval '1 millisecond'`;
      await tx
        .update(signingSecrets)
        .set({ expiresAt: end })
        .where(and(ofSubscription, isNull(signingSecrets.expiresAt)));
      const isOver = sql`(${graceMs}::bigint = 0 OR ${signingSecrets.expiresAt} <= now())`;
      await tx.delete(signingSecrets).where(and(ofSubscription, isOver));
      const context = { purpose: "signing_secret" as const, tenantId, subscriptionId: subscriptionUuid };
      await tx.insert(signingSecrets).values({ subscriptionKey, tenantKey, ...box.seal(secret, context) });
      return {};
    },
  );
}

/** Holds deliveries back. Once it returns, no claim commits that has not seen it. */
export async function pauseSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<Changed> {
  return changeSubscription(orm, tenantId, subscriptionUuid, async (tx, { subscription: current }) => {
    if (fromCode(SUBSCRIPTION_STATES, current.state) === "DISABLED") {
      throw new FailedPreconditionError("SUBSCRIPTION_DISABLED", "the subscription is disabled; resume it first");
    }
    await stopLaneClock(tx, current);
    return { state: toCode(SUBSCRIPTION_STATES, "PAUSED"), stateReason: "paused_by_request" };
  });
}

/** Sends again, from PAUSED or DISABLED. */
export async function resumeSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<Changed> {
  return changeSubscription(orm, tenantId, subscriptionUuid, async (tx, { subscription: current }) => {
    await restartLane(tx, current, { wasDisabled: current.state === toCode(SUBSCRIPTION_STATES, "DISABLED") });
    return { state: toCode(SUBSCRIPTION_STATES, "ENABLED"), stateReason: "" };
  });
}

/** Marks it deleted: nothing new is fanned out or claimed. A worker cancels what is pending. */
export async function deleteSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
): Promise<void> {
  await changeSubscription(orm, tenantId, subscriptionUuid, async () => ({ deletedAt: sql`now()` }));
}

/**
 * Changes a subscription under its lane's exclusive lock. Claims share that lock until they commit: when this returns,
 * every claim that saw the old state has committed, and every later one sees the new state.
 */
async function changeSubscription(
  orm: PostgresJsDatabase,
  tenantId: string,
  subscriptionUuid: Uuid,
  change: (tx: Transaction, current: FullRow) => Promise<Columns>,
): Promise<Changed> {
  return orm.transaction(async (tx) => {
    const lane = (await findRow(tx, tenantId, subscriptionUuid)).subscription.subscriptionKey;
    await tx.execute(sql`SELECT pg_advisory_xact_lock(${LANE_LOCK}, ${lane})`);
    // Before its lane's state, which whoever reports on the lane locks in the same order.
    await tx
      .select({ key: webhookSubscriptions.subscriptionKey })
      .from(webhookSubscriptions)
      .where(eq(webhookSubscriptions.subscriptionKey, lane))
      .for("no key update");
    const current = await findRow(tx, tenantId, subscriptionUuid);
    const columns = await change(tx, current);
    const [row] = await tx
      .update(webhookSubscriptions)
      .set({ ...columns, revision: sql`${webhookSubscriptions.revision} + 1`, updatedAt: sql`now()` })
      .where(eq(webhookSubscriptions.subscriptionKey, lane))
      .returning();
    const changed = row as SubscriptionRow;
    // Read anew for what has changed beside it; one that is deleted now cannot be found any more.
    const full =
      changed.deletedAt === null
        ? await findRow(tx, tenantId, subscriptionUuid)
        : { ...current, subscription: changed };
    return { subscription: toSubscription(full, tenantId), lane };
  });
}
