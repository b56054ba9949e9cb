import { and, eq, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import type { Sql } from "postgres";
import { fromCode, toCode } from "../core/codes.ts";
import { DELIVERY_STATES } from "../core/delivery.ts";
import { AlreadyExistsError, FailedPreconditionError, NotFoundError } from "../core/errors.ts";
import { fromEventTypeCode, toEventTypeCode } from "../core/event.ts";
import { leastUuidAt, type Uuid, uuidV7EpochMs } from "../core/ids.ts";
import { REDRIVE_STATES, type RedriveSpec, type RedriveState } from "../core/redrive.ts";
import { redrives, tenants, webhookSubscriptions } from "./schema.ts";
import { findRow, type Transaction } from "./subscription-rows.ts";

export type Redrive = RedriveSpec & {
  readonly uuid: Uuid;
  readonly tenantId: string;
  readonly state: RedriveState;
  readonly scannedCount: number;
  readonly redrivenCount: number;
  readonly overtakenCount: number;
  readonly scannedUntilMs: number | undefined;
  readonly createdAt: Date;
  readonly endedAt: Date | undefined;
};

type RedriveRow = typeof redrives.$inferSelect;

export type CreateRedrive = {
  readonly spec: RedriveSpec;
  readonly redriveUuid: Uuid;
  readonly requestId: string | undefined;
  readonly contentHash: Buffer;
};

/** No event is older than this. */
const BEGINNING_MS = 0;

/** Stores the job, or finds the one that the same request made before. Workers find it by themselves. */
export async function createRedrive(
  orm: PostgresJsDatabase,
  tenantId: string,
  { spec, redriveUuid, requestId, contentHash }: CreateRedrive,
): Promise<Redrive> {
  return orm.transaction(async (tx) => {
    const { subscriptionKey, tenantKey } = (await findRow(tx, tenantId, spec.subscription)).subscription;
    // Creates of one tenant take turns: a replay finds what the first call made.
    await tx.select().from(tenants).where(eq(tenants.tenantKey, tenantKey)).for("no key update");
    const earlier = requestId === undefined ? undefined : await findByRequest(tx, tenantKey, requestId);
    if (earlier && !earlier.contentHash.equals(contentHash)) {
      throw new AlreadyExistsError("REQUEST_ID_REUSED", "request_id: stands for another request");
    }
    if (earlier) return toRedrive(earlier, tenantId, spec.subscription);
    const [clock] = await tx.execute<{ now_ms: number }>(
      sql`SELECT extract(epoch FROM now())::float8 * 1000 AS now_ms`,
    );
    const nowMs = Math.ceil(clock?.now_ms ?? 0);
    const [row] = await tx
      .insert(redrives)
      .values({
        redriveUuid,
        tenantKey,
        subscriptionKey,
        state: toCode(REDRIVE_STATES, "RUNNING"),
        requestId: requestId ?? null,
        contentHash,
        states: spec.states.map((state) => toCode(DELIVERY_STATES, state)),
        eventTypes: spec.eventTypes.map(toEventTypeCode),
        includeMissed: spec.includeMissed,
        includeOvertaken: spec.includeOvertaken,
        fromKey: leastUuidAt(spec.createdFromMs ?? BEGINNING_MS),
        toKey: leastUuidAt(Math.min(spec.createdBeforeMs ?? nowMs, nowMs)),
      })
      .onConflictDoNothing()
      .returning();
    if (!row) {
      throw new FailedPreconditionError("REDRIVE_UNDER_WAY", "another redrive of the subscription is running");
    }
    return toRedrive(row, tenantId, spec.subscription);
  });
}

async function findByRequest(tx: Transaction, tenantKey: number, requestId: string): Promise<RedriveRow | undefined> {
  const [row] = await tx
    .select()
    .from(redrives)
    .where(and(eq(redrives.tenantKey, tenantKey), eq(redrives.requestId, requestId)));
  return row;
}

export async function getRedrive(orm: PostgresJsDatabase, tenantId: string, redriveUuid: Uuid): Promise<Redrive> {
  const [row] = await orm
    .select({ redrive: redrives, subscriptionUuid: webhookSubscriptions.subscriptionUuid })
    .from(redrives)
    .innerJoin(tenants, eq(tenants.tenantKey, redrives.tenantKey))
    .innerJoin(webhookSubscriptions, eq(webhookSubscriptions.subscriptionKey, redrives.subscriptionKey))
    .where(and(eq(redrives.redriveUuid, redriveUuid), eq(tenants.tenantId, tenantId)));
  if (!row) throw new NotFoundError("REDRIVE_NOT_FOUND", "there is no such redrive in this tenant");
  return toRedrive(row.redrive, tenantId, row.subscriptionUuid);
}

/** Ends a running job after the step that is on its way. */
export async function cancelRedrive(orm: PostgresJsDatabase, tenantId: string, redriveUuid: Uuid): Promise<Redrive> {
  await getRedrive(orm, tenantId, redriveUuid);
  await orm
    .update(redrives)
    .set({ state: toCode(REDRIVE_STATES, "CANCELLED"), endedAt: sql`now()` })
    .where(and(eq(redrives.redriveUuid, redriveUuid), eq(redrives.state, toCode(REDRIVE_STATES, "RUNNING"))));
  return getRedrive(orm, tenantId, redriveUuid);
}

function toRedrive(row: RedriveRow, tenantId: string, subscription: Uuid): Redrive {
  const fromMs = uuidV7EpochMs(row.fromKey);
  return {
    uuid: row.redriveUuid,
    tenantId,
    subscription,
    createdFromMs: fromMs === BEGINNING_MS ? undefined : fromMs,
    createdBeforeMs: uuidV7EpochMs(row.toKey),
    states: row.states.map((code) => fromCode(DELIVERY_STATES, code)),
    eventTypes: row.eventTypes.map(fromEventTypeCode),
    includeMissed: row.includeMissed,
    includeOvertaken: row.includeOvertaken,
    state: fromCode(REDRIVE_STATES, row.state),
    scannedCount: row.scannedCount,
    redrivenCount: row.redrivenCount,
    overtakenCount: row.overtakenCount,
    scannedUntilMs: row.scannedKey === null ? undefined : uuidV7EpochMs(row.scannedKey),
    createdAt: row.createdAt,
    endedAt: row.endedAt ?? undefined,
  };
}

export type StepOptions = {
  /** Events to look at. */
  readonly batch: number;
  /** Rows of the job that may be pending at once. */
  readonly maxAhead: number;
  readonly maxPendingMs: number;
  readonly payloadRetentionMs: number;
};

/** The job that has waited longest, whose turn it is now; undefined if none runs. */
export async function nextRedrive(hot: Sql): Promise<Uuid | undefined> {
  const [row] = await hot<{ uuid: Uuid | null }[]>`SELECT nuncio.next_redrive() AS uuid`;
  return row?.uuid ?? undefined;
}

/** What one step of a job came to. */
export type RedriveStep = {
  readonly lane: number;
  /** Since when the redriven are due: the transaction's time, in milliseconds since 1970. */
  readonly atMs: number;
  /** Undefined where the job waits until fewer of its rows are pending. */
  readonly redriven: number | undefined;
  readonly hasEnded: boolean;
};

/** Makes the next step of a job; undefined if another worker is at it, or if it has ended. See `nuncio.step_redrive`. */
export async function stepRedrive(
  hot: Sql,
  redriveUuid: Uuid,
  { batch, maxAhead, maxPendingMs, payloadRetentionMs }: StepOptions,
): Promise<RedriveStep | undefined> {
  const [row] = await hot<{ lane: number; redriven: number | null; has_ended: boolean; at_ms: number }[]>`
    SELECT lane, redriven, has_ended, date_part('epoch', now()) * 1000 AS at_ms
    FROM nuncio.step_redrive(${redriveUuid}::uuid, ${batch}::integer, ${maxAhead}::integer, ${maxPendingMs}::bigint,
      ${payloadRetentionMs}::bigint)`;
  return row && { lane: row.lane, atMs: row.at_ms, redriven: row.redriven ?? undefined, hasEnded: row.has_ended };
}
