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
  return END_REASONS.indexOf(reason) + 1;
}

export function fromEndReasonCode(code: number): EndReason {
  const reason = END_REASONS[code - 1];
  if (reason === undefined) throw new Error(`unknown end reason code ${code}`);
  return reason;
}

export function stateOfEnd(reason: EndReason): DeliveryState {
  return CANCELLING_REASONS.includes(reason) ? "CANCELLED" : "DEAD_LETTERED";
}

/** From this many claims in a row without a record, a row is claimed alone: it may be what kills its worker. */
export const LOST_CLAIMS_QUARANTINED = 3;

/** From this many, it ends as WORKER_LOST. */
export const LOST_CLAIMS_ENDED = 10;

/** What a lease has to have left beyond the request timeout when a request begins: time to record the outcome. */
export const LEASE_MARGIN_MS = 5000;

/** Whether a request may begin: its whole time and the record of it fit into what is left of the lease. */
export function leaseSuffices(remainingMs: number, requestTimeoutMs: number): boolean {
  return remainingMs >= requestTimeoutMs + LEASE_MARGIN_MS;
}
