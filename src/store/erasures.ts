import { and, eq, sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import type { Sql } from "postgres";
import { fromCode, toCode } from "../core/codes.ts";
import { ERASURE_STATES, type ErasureState } from "../core/erasure.ts";
import { NotFoundError } from "../core/errors.ts";
import { eraseBody } from "../core/event-body.ts";
import type { Uuid } from "../core/ids.ts";
import { erasures, tenants } from "./schema.ts";

export type Erasure = {
  readonly uuid: Uuid;
  readonly tenantId: string;
  readonly userId: string;
  readonly state: ErasureState;
  readonly erasedCount: number;
  readonly cancelledCount: number;
  readonly createdAt: Date;
  readonly endedAt: Date | undefined;
};

type ErasureRow = typeof erasures.$inferSelect;

/** Asks for a user to be erased; returns the job that runs already if there is one. Workers find it by themselves. */
export async function createErasure(
  orm: PostgresJsDatabase,
  tenantId: string,
  { userId, erasureUuid }: { userId: string; erasureUuid: Uuid },
): Promise<Erasure> {
  return orm.transaction(async (tx) => {
    // A tenant appears at its first use, and there is a record also of an erasure that finds nothing.
    await tx.insert(tenants).values({ tenantId }).onConflictDoNothing();
    const [tenant] = await tx.select().from(tenants).where(eq(tenants.tenantId, tenantId)).for("no key update");
    const tenantKey = tenant?.tenantKey ?? 0;
    const state = toCode(ERASURE_STATES, "RUNNING");
    const [running] = await tx
      .select()
      .from(erasures)
      .where(and(eq(erasures.tenantKey, tenantKey), eq(erasures.userId, userId), eq(erasures.state, state)));
    if (running) {
      // What has come since it was asked for is meant as well: from the newest event back once more.
      const again = { eraseBefore: sql`now()`, scannedKey: null };
      const [moved] = await tx
        .update(erasures)
        .set(again)
        .where(and(eq(erasures.erasureUuid, running.erasureUuid), eq(erasures.state, state)))
        .returning();
      // It has ended this very moment: then it is a new one.
      if (moved) return toErasure(moved, tenantId);
    }
    const [row] = await tx.insert(erasures).values({ erasureUuid, tenantKey, userId, state }).returning();
    return toErasure(row as ErasureRow, tenantId);
  });
}

export async function getErasure(orm: PostgresJsDatabase, tenantId: string, erasureUuid: Uuid): Promise<Erasure> {
  const [row] = await orm
    .select({ erasure: erasures })
    .from(erasures)
    .innerJoin(tenants, eq(tenants.tenantKey, erasures.tenantKey))
    .where(and(eq(erasures.erasureUuid, erasureUuid), eq(tenants.tenantId, tenantId)));
  if (!row) throw new NotFoundError("ERASURE_NOT_FOUND", "there is no such erasure in this tenant");
  return toErasure(row.erasure, tenantId);
}

function toErasure(row: ErasureRow, tenantId: string): Erasure {
  return {
    uuid: row.erasureUuid,
    tenantId,
    userId: row.userId,
    state: fromCode(ERASURE_STATES, row.state),
    erasedCount: row.erasedCount,
    cancelledCount: row.cancelledCount,
    createdAt: row.createdAt,
    endedAt: row.endedAt ?? undefined,
  };
}

/** The job that has waited longest, whose turn it is now, whatever becomes of its step; undefined if none runs. */
export async function nextErasure(hot: Sql): Promise<Uuid | undefined> {
  const [row] = await hot<{ erasure_uuid: Uuid }[]>`
    UPDATE nuncio.erasures SET stepped_at = clock_timestamp() WHERE erasure_uuid = (
      SELECT n.erasure_uuid FROM nuncio.erasures n WHERE n.state = 1 ORDER BY n.stepped_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING erasure_uuid`;
  return row?.erasure_uuid;
}

/** What one step of a job came to. */
export type ErasureStep = {
  /** Where something has come due, and since when: the transaction's time, in milliseconds since 1970. */
  readonly lanes: readonly number[];
  readonly atMs: number;
  /** What is left is being sent right now. */
  readonly hasToWait: boolean;
  readonly hasEnded: boolean;
};

/**
 * Makes the next step of a job, over up to `batch` events; undefined if another worker is at it, or if it has ended. One
 * transaction under the lock on the job's row and the user's: whoever dies in it has done nothing of it, and no event of the
 * user comes or ends meanwhile.
 *
 * A pass goes from the newest event back, so that the first of the user's order goes last: whatever comes due by its end
 * tells that the user has left, or is nobody's.
 */
export async function stepErasure(hot: Sql, erasureUuid: Uuid, batch: number): Promise<ErasureStep | undefined> {
  return hot.begin(async (tx) => {
    const [job] = await tx<
      { tenant_key: number; user_id: string; tenant_id: string; left_behind: boolean; at_ms: number }[]
    >`
      SELECT j.tenant_key, j.user_id, t.tenant_id, j.left_behind, date_part('epoch', now()) * 1000 AS at_ms
      FROM nuncio.erasures j JOIN nuncio.tenants t ON t.tenant_key = j.tenant_key
      WHERE j.erasure_uuid = ${erasureUuid} AND j.state = 1 FOR UPDATE OF j SKIP LOCKED`;
    if (!job) return undefined;
    await tx`SELECT nuncio.lock_users(ARRAY[nuncio.user_key(${job.tenant_id}, ${job.user_id})])`;
    const events = await tx<{ event_key: Uuid; body: string; erased: boolean }[]>`
      SELECT e.event_key, e.body, e.erased FROM nuncio.erasures j CROSS JOIN LATERAL (
        SELECT e.event_key, e.body, e.erased FROM nuncio.events e
        WHERE e.tenant_key = j.tenant_key AND e.user_id = j.user_id
          AND e.event_key < coalesce(j.scanned_key, nuncio.least_uuid_at(j.erase_before + interval '1 millisecond'))
        ORDER BY e.event_key DESC LIMIT ${batch}
      ) AS e
      WHERE j.erasure_uuid = ${erasureUuid} ORDER BY e.event_key DESC`;
    const open = events.filter(({ erased }) => !erased);
    const [done] = await tx<{ erased: number; cancelled: number; left_behind: number; due_lanes: number[] }[]>`
      SELECT erased, cancelled, left_behind, due_lanes FROM nuncio.erase_events(${job.tenant_key},
        ${open.map(({ event_key }) => event_key)}::text[]::uuid[], ${open.map(({ body }) => eraseBody(body))}::text[])`;
    const { erased = 0, cancelled = 0, left_behind = 0, due_lanes: lanes = [] } = done ?? {};
    const isPassOver = events.length < batch;
    const leftBehind = job.left_behind || left_behind > 0;
    const hasEnded = isPassOver && !leftBehind;
    await tx`
      UPDATE nuncio.erasures SET erased_count = erased_count + ${erased}, cancelled_count = cancelled_count + ${cancelled},
        scanned_key = ${isPassOver ? null : (events.at(-1)?.event_key ?? null)}::uuid,
        left_behind = ${leftBehind && !isPassOver}::boolean,
        state = ${toCode(ERASURE_STATES, hasEnded ? "SUCCEEDED" : "RUNNING")},
        ended_at = CASE WHEN ${hasEnded}::boolean THEN now() END
      WHERE erasure_uuid = ${erasureUuid}`;
    return { lanes, atMs: job.at_ms, hasToWait: isPassOver && leftBehind, hasEnded };
  });
}
