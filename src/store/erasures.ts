import { and, eq } from "drizzle-orm";
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
    if (running) return toErasure(running, tenantId);
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

/** What one step of a job came to. */
export type ErasureStep = {
  readonly erasureUuid: Uuid;
  /** Events that were emptied; none where the rest is being sent right now, or where there was nothing left. */
  readonly erased: number;
  readonly lanes: readonly number[];
  readonly hasEnded: boolean;
};

/**
 * Makes the next step of the job that has waited longest; undefined if there is none. One transaction under the lock on the
 * job's row and the user's: whoever dies in it has done nothing of it, and no event of the user comes or ends meanwhile.
 */
export async function stepErasure(hot: Sql, batch: number): Promise<ErasureStep | undefined> {
  return hot.begin(async (tx) => {
    const [job] = await tx<{ erasure_uuid: Uuid; tenant_key: number; user_id: string; tenant_id: string }[]>`
      SELECT j.erasure_uuid, j.tenant_key, j.user_id, t.tenant_id
      FROM nuncio.erasures j JOIN nuncio.tenants t ON t.tenant_key = j.tenant_key
      WHERE j.state = 1 ORDER BY j.stepped_at LIMIT 1 FOR UPDATE OF j SKIP LOCKED`;
    if (!job) return undefined;
    await tx`SELECT nuncio.lock_users(ARRAY[nuncio.user_key(${job.tenant_id}, ${job.user_id})])`;
    const events = await tx<{ event_key: Uuid; body: string }[]>`
      SELECT e.event_key, e.body FROM nuncio.erasures j
      JOIN nuncio.events e ON e.tenant_key = j.tenant_key AND e.user_id = j.user_id
        AND e.event_key < nuncio.least_uuid_at(j.created_at + interval '1 millisecond')
      WHERE j.erasure_uuid = ${job.erasure_uuid} AND NOT e.erased
      ORDER BY e.event_key LIMIT ${batch}`;
    const [done] = await tx<{ erased: number; cancelled: number; due_lanes: number[] }[]>`
      SELECT erased, cancelled, due_lanes FROM nuncio.erase_events(${job.tenant_key},
        ${events.map(({ event_key }) => event_key)}::text[]::uuid[], ${events.map(({ body }) => eraseBody(body))}::text[])`;
    const { erased = 0, cancelled = 0, due_lanes: lanes = [] } = done ?? {};
    const hasEnded = events.length === 0;
    await tx`
      UPDATE nuncio.erasures SET erased_count = erased_count + ${erased}, cancelled_count = cancelled_count + ${cancelled},
        stepped_at = clock_timestamp(), state = ${toCode(ERASURE_STATES, hasEnded ? "SUCCEEDED" : "RUNNING")},
        ended_at = CASE WHEN ${hasEnded}::boolean THEN now() END
      WHERE erasure_uuid = ${job.erasure_uuid}`;
    return { erasureUuid: job.erasure_uuid, erased, lanes, hasEnded };
  });
}
