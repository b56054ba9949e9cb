import { fromCode, toCode } from "./codes.ts";

/** Names as on the wire; a state's number in the proto is its place in this list plus one. */
export const DELIVERY_STATES = ["PENDING", "DELIVERING", "DELIVERED", "DEAD_LETTERED", "CANCELLED"] as const;
export type DeliveryState = (typeof DELIVERY_STATES)[number];

/** Append-only; a reason's number in the proto and in the database is its place in this list plus one. */
export const END_REASONS = [
  "RETRIES_EXHAUSTED",
  "EXPIRED",
  "ORDER_HOLD",
  "SUPERSEDED",
  "WORKER_LOST",
  "ERASED",
  "SUBSCRIPTION_DELETED",
  "CANCELLED_BY_REQUEST",
] as const;
export type EndReason = (typeof END_REASONS)[number];

/** Ends that somebody asked for; every other end without a 2xx is a dead letter. */
export const CANCELLING_REASONS: readonly EndReason[] = ["ERASED", "SUBSCRIPTION_DELETED", "CANCELLED_BY_REQUEST"];

export function toEndReasonCode(reason: EndReason): number {
  return toCode(END_REASONS, reason);
}

export function fromEndReasonCode(code: number): EndReason {
  return fromCode(END_REASONS, code);
}

export function stateOfEnd(reason: EndReason): DeliveryState {
  return CANCELLING_REASONS.includes(reason) ? "CANCELLED" : "DEAD_LETTERED";
}

/**
 * After this many claims in a row without a record a row ends as WORKER_LOST. After three it is claimed alone, since it
 * may be what kills its worker: `nuncio.claim_deliveries` sees to that.
 */
export const LOST_CLAIMS_ENDED = 10;

/** What a lease has to have left beyond the request timeout when a request begins: time to record the outcome. */
export const LEASE_MARGIN_MS = 5000;

/** How much of its time limit a request may give up to fit into its lease: what a claim and its answer take. */
const LARGEST_CUT = 0.2;
const LARGEST_CUT_MS = 1000;

/**
 * The time limit for a request that begins now, or undefined if the lease is too short for one: the whole request and
 * the record of it have to fit into what is left. A lease of exactly the time limit and the margin is a valid setting;
 * the milliseconds that the claim took come off the limit then, else no request could ever begin.
 */
export function timeLimitWithin(leaseRemainingMs: number, requestTimeoutMs: number): number | undefined {
  const room = leaseRemainingMs - LEASE_MARGIN_MS;
  const least = requestTimeoutMs - Math.min(LARGEST_CUT_MS, requestTimeoutMs * LARGEST_CUT);
  return room < least ? undefined : Math.min(room, requestTimeoutMs);
}
