import { sql } from "drizzle-orm";
import type { PostgresJsDatabase } from "drizzle-orm/postgres-js";
import type { Sql } from "postgres";
import { FAILURES_TO_OPEN } from "../core/breaker.ts";
import { toCode } from "../core/codes.ts";
import { DISABLE_REASONS, type DisableReason, toOperationalEventTypeCode } from "../core/operational-event.ts";
import { toArrayText } from "./array-text.ts";
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
 * due spread over a minute. After trouble the next success is announced.
 */
export async function restartLane(
  orm: Writer,
  { subscriptionKey, tenantKey }: Lane,
  { wasDisabled }: { wasDisabled: boolean },
): Promise<void> {
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
    .values({ subscriptionKey, tenantKey, ...fresh, recoveryDue: wasDisabled })
    .onConflictDoUpdate({
      target: laneStates.subscriptionKey,
      set: {
        ...fresh,
        recoveryDue: sql`${laneStates.recoveryDue} OR ${wasDisabled} OR ${laneStates.consecutiveFailures} >= ${FAILURES_TO_OPEN}`,
        stoppedFor: sql`${laneStates.stoppedFor} + coalesce(now() - ${laneStates.stoppedSince}, '0')`,
      },
    });
}

/** What a worker has learned about a lane. Times are distances from now, in milliseconds. */
export type LaneReport = {
  readonly lane: number;
  /** That of the subscription when it was learned. */
  readonly revision: number;
  readonly succeededAgoMs: number | undefined;
  readonly failedAgoMs: number | undefined;
  readonly lastFailure: string | undefined;
  readonly consecutiveFailures: number;
  readonly failingForMs: number | undefined;
  readonly heldForMs: number | undefined;
  readonly breakerForMs: number | undefined;
  readonly breakerTrips: number;
  readonly recoveringForMs: number | undefined;
  readonly event: "subscription.failing" | "subscription.recovered" | undefined;
};

/** Nothing but failure for so long disables a subscription. */
const LONGEST_FAILING_MS = 5 * 86_400_000;

/** Writes the reports down, and returns the lanes that have known nothing but failure for five days. */
export async function reportLanes(hot: Sql, reports: readonly LaneReport[]): Promise<readonly number[]> {
  const whole = (read: (report: LaneReport) => number | undefined) =>
    toArrayText(reports, (report) => roundDefined(read(report)));
  const rows = await hot<{ lane: number }[]>`
    SELECT lane FROM nuncio.report_lanes(
      ${whole(({ lane }) => lane)}::integer[],
      ${whole(({ revision }) => revision)}::integer[],
      ${whole(({ succeededAgoMs }) => succeededAgoMs)}::bigint[],
      ${whole(({ failedAgoMs }) => failedAgoMs)}::bigint[],
      ${reports.map(({ lastFailure }) => lastFailure ?? null)}::text[],
      ${whole(({ consecutiveFailures }) => consecutiveFailures)}::integer[],
      ${whole(({ failingForMs }) => failingForMs)}::bigint[],
      ${whole(({ heldForMs }) => heldForMs)}::bigint[],
      ${whole(({ breakerForMs }) => breakerForMs)}::bigint[],
      ${whole(({ breakerTrips }) => breakerTrips)}::smallint[],
      ${whole(({ recoveringForMs }) => recoveringForMs)}::bigint[],
      ${whole(({ event }) => event && toOperationalEventTypeCode(event))}::smallint[],
      ${LONGEST_FAILING_MS}::bigint) AS lane`;
  return rows.map(({ lane }) => lane);
}

function roundDefined(value: number | undefined): number | undefined {
  return value === undefined ? undefined : Math.round(value);
}

/** A success so recent speaks against a 410. */
export const GONE_UNLESS_SUCCESS_MS = 60_000;

/**
 * Disables a subscription that is enabled, and returns whether it did: not where it has succeeded lately. Once it returns,
 * every later claim has seen it.
 */
export async function disableSubscription(hot: Sql, lane: number, reason: DisableReason): Promise<boolean> {
  const [row] = await hot<{ disabled: boolean }[]>`
    SELECT nuncio.disable_subscription(${lane}::integer, ${toCode(DISABLE_REASONS, reason)}::smallint, ${reason},
      ${GONE_UNLESS_SUCCESS_MS}::bigint) AS disabled`;
  return row?.disabled ?? false;
}
