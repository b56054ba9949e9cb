import { sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import { laneStates } from "./schema.ts";

type Writer = Pick<PostgresJsDatabase, "insert">;
type Lane = { readonly subscriptionKey: number; readonly tenantKey: number };

/** Lets the lane's own clock stand: nothing is sent to it from now on, by intention. */
export async function stopLaneClock(orm: Writer, { subscriptionKey, tenantKey }: Lane): Promise<void> {
  await orm
    .insert(laneStates)
    .values({ subscriptionKey, tenantKey, stoppedSince: sql`now()` })
    .onConflictDoUpdate({
      target: laneStates.subscriptionKey,
      set: { stoppedSince: sql`coalesce(${laneStates.stoppedSince}, now())` },
    });
}

/**
 * A new beginning, on Resume: whatever was held against the lane is forgotten, its clock goes on, and what waited comes
 * due spread over a minute.
 */
export async function restartLane(orm: Writer, { subscriptionKey, tenantKey }: Lane): Promise<void> {
  const fresh = {
    stoppedSince: null,
    heldUntil: null,
    breakerUntil: null,
    breakerTrips: 0,
    recoveringSince: sql`now()`,
    consecutiveFailures: 0,
    failingSince: null,
  };
  await orm
    .insert(laneStates)
    .values({ subscriptionKey, tenantKey, ...fresh })
    .onConflictDoUpdate({
      target: laneStates.subscriptionKey,
      set: {
        ...fresh,
        stoppedFor: sql`${laneStates.stoppedFor} + coalesce(now() - ${laneStates.stoppedSince}, '0')`,
      },
    });
}
