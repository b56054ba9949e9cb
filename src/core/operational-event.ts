import { fromCode, toCode } from "./codes.ts";
import { fromEndReasonCode } from "./delivery.ts";

/** Append-only; a type's number in the proto and in the database is its place in this list plus one. */
export const OPERATIONAL_EVENT_TYPES = [
  "subscription.disabled",
  "subscription.failing",
  "subscription.recovered",
  "delivery.dead_lettered",
] as const;
export type OperationalEventType = (typeof OPERATIONAL_EVENT_TYPES)[number];

/** Why we disable a subscription, as its `state_reason` says it. Append-only, like the types. */
export const DISABLE_REASONS = ["gone", "failing"] as const;
export type DisableReason = (typeof DISABLE_REASONS)[number];

export function toOperationalEventTypeCode(type: OperationalEventType): number {
  return toCode(OPERATIONAL_EVENT_TYPES, type);
}

/** The reason that a code stands for, which depends on the type; empty where the type has none. */
export function fromReasonCode(type: OperationalEventType, code: number): string {
  if (type === "delivery.dead_lettered") return fromEndReasonCode(code);
  return type === "subscription.disabled" ? fromCode(DISABLE_REASONS, code) : "";
}
