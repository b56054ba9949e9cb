import type { DeliveryState } from "./delivery.ts";
import type { Fault } from "./errors.ts";
import type { EventType } from "./event.ts";
import type { Uuid } from "./ids.ts";

/** Append-only; the number in the proto and in the database is the place in the list plus one. */
export const REDRIVE_STATES = ["RUNNING", "SUCCEEDED", "CANCELLED"] as const;
export type RedriveState = (typeof REDRIVE_STATES)[number];

/** States that a delivery can be brought back from. */
const REDRIVABLE: readonly DeliveryState[] = ["DELIVERED", "DEAD_LETTERED"];

/** What a bulk redrive is to bring back. */
export type RedriveSpec = {
  readonly subscription: Uuid;
  /** Milliseconds since 1970: from the first, inclusive, up to the second, exclusive; undefined: no such bound. */
  readonly createdFromMs: number | undefined;
  readonly createdBeforeMs: number | undefined;
  /** Empty: DEAD_LETTERED, and what never became a delivery. */
  readonly states: readonly DeliveryState[];
  /** Empty: all. */
  readonly eventTypes: readonly EventType[];
  readonly includeMissed: boolean;
  readonly includeOvertaken: boolean;
};

export function checkRedrive(spec: Omit<RedriveSpec, "subscription">, path: string, faults: Fault[]): void {
  spec.states.forEach((state, i) => {
    if (!REDRIVABLE.includes(state)) {
      faults.push({ path: `${path}.states[${i}]`, description: "must be DELIVERED or DEAD_LETTERED" });
    }
  });
  const { createdFromMs, createdBeforeMs } = spec;
  if (createdFromMs !== undefined && createdBeforeMs !== undefined && createdFromMs >= createdBeforeMs) {
    faults.push({ path: `${path}.create_time_before`, description: "must be later than create_time_after" });
  }
}
