import type { Sql } from "postgres";
import type { Uuid } from "../../core/ids.ts";
import { toArrayText } from "../array-text.ts";

/** Which lane to look into, for how many rows, and from which due time on. */
export type LaneQuota = {
  readonly lane: number;
  readonly quota: number;
  /**
   * The due time from which on to look, in milliseconds since 1970; minus infinity looks at everything. What lies behind it
   * has ended, as a rule: what has not is announced with its time, or found by a look at the outbox.
   */
  readonly sinceMs: number;
};

/** A `bigint` of Postgres as it comes over the wire, where nobody calculates with it. */
export type BigintText = `${bigint}`;

/** A delivery that is ours until its lease ends, or until another claim takes it after that. */
export type ClaimedDelivery = {
  readonly subscriptionKey: number;
  /** The subscription's revision when it was claimed. */
  readonly revision: number;
  readonly eventKey: Uuid;
  readonly leaseToken: bigint;
  /** Whose place in an order it holds, null outside every order. */
  readonly userKey: BigintText | null;
  /** Asked for once more: outside the order. */
  readonly redrive: boolean;
  /** A claim before this one ended without a record: its worker died, or stood still for longer than its lease. */
  readonly wasLost: boolean;
  /** The number of this attempt, from 1. */
  readonly attempt: number;
  readonly failures: number;
  /** All three by the database's clock, in milliseconds since 1970; `claimedAtMs` is the claim's `now()`. */
  readonly wasDueAtMs: number;
  readonly claimedAtMs: number;
  readonly expiresAtMs: number;
  /** Null only if the payload is gone, which retention rules out. */
  readonly event: { readonly id: string; readonly body: string; readonly traceparent: string | null } | null;
};

type ClaimRow = {
  subscription_key: number;
  revision: number;
  event_key: Uuid;
  attempt: number;
  failures: number;
  was_due_ms: number;
  claimed_ms: number;
  expires_ms: number;
  event_id: string | null;
  body: string | null;
  traceparent: string | null;
  user_key: BigintText | null;
  redrive: boolean;
  lease_lost: boolean;
};

/**
 * Leases due deliveries of the lanes and counts the attempt. Commits without waiting for the disk: a claim that a crash
 * of Postgres forgets leaves the row due, and the random token keeps its result from counting.
 *
 * Served by `outbox_due (subscription_key, next_at)`: one descent per lane, whatever else is pending. SKIP LOCKED lets
 * several workers claim in the same lane without waiting for each other.
 */
export async function claimDueDeliveries(
  sql: Sql,
  lanes: readonly LaneQuota[],
  { leaseMs, leaseToken }: { leaseMs: number; leaseToken: bigint },
): Promise<ClaimedDelivery[]> {
  const rows = await sql<ClaimRow[]>`
    SELECT * FROM nuncio.claim_deliveries(
      ${toArrayText(lanes, ({ lane }) => lane)}::integer[],
      ${toArrayText(lanes, ({ quota }) => quota)}::integer[],
      ${toArrayText(lanes, ({ sinceMs }) => sinceMs)}::double precision[],
      false, ${leaseMs}::integer, ${leaseToken.toString()}::bigint)`;
  return rows.map((row) => toClaimedDelivery(row, leaseToken));
}

/** Leases one delivery whose last claims ended without a record, so that it meets its worker alone. */
export async function claimQuarantinedDelivery(
  sql: Sql,
  { leaseMs, leaseToken }: { leaseMs: number; leaseToken: bigint },
): Promise<ClaimedDelivery | undefined> {
  const rows = await sql<ClaimRow[]>`
    SELECT * FROM nuncio.claim_deliveries('{}', '{}', '{}', true, ${leaseMs}::integer, ${leaseToken.toString()}::bigint)`;
  return rows[0] && toClaimedDelivery(rows[0], leaseToken);
}

function toClaimedDelivery(row: ClaimRow, leaseToken: bigint): ClaimedDelivery {
  return {
    subscriptionKey: row.subscription_key,
    revision: row.revision,
    eventKey: row.event_key,
    leaseToken,
    userKey: row.user_key,
    redrive: row.redrive,
    wasLost: row.lease_lost,
    attempt: row.attempt,
    failures: row.failures,
    wasDueAtMs: row.was_due_ms,
    claimedAtMs: row.claimed_ms,
    expiresAtMs: row.expires_ms,
    event:
      row.event_id === null || row.body === null
        ? null
        : { id: row.event_id, body: row.body, traceparent: row.traceparent },
  };
}
