import type { Outcome } from "./attempt.ts";
import type { EndReason } from "./delivery.ts";
import { MAX_JITTER } from "./schedule.ts";

/** What becomes of a delivery after an attempt. */
export type Decision =
  | { readonly kind: "delivered" }
  | { readonly kind: "retry"; readonly delayMs: number }
  | { readonly kind: "dead_letter"; readonly reason: EndReason };

export type Circumstances = {
  /** Recorded failures before this attempt. Lost claims do not count. */
  readonly failures: number;
  /** Delays before the second, third … attempt, in milliseconds. */
  readonly schedule: readonly number[];
  /** Uniform in [0, 1). */
  readonly random: number;
  /** How long the delivery may still live, by the database's clock. */
  readonly remainingMs: number;
};

/**
 * Whether and when there is another attempt. A retry that could only come due after `expire_time` is not waited for:
 * the delivery ends now as EXPIRED, when someone can still do something about it.
 */
export function decide(outcome: Outcome, { failures, schedule, random, remainingMs }: Circumstances): Decision {
  if (outcome.kind === "delivered") return { kind: "delivered" };
  const delay = schedule[failures];
  if (delay === undefined) return { kind: "dead_letter", reason: "RETRIES_EXHAUSTED" };
  const delayMs = Math.ceil(delay * (1 + random * (MAX_JITTER - 1)));
  if (delayMs >= remainingMs) return { kind: "dead_letter", reason: "EXPIRED" };
  return { kind: "retry", delayMs };
}
