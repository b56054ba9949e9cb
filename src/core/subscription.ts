import { type AddressPolicy, judgeTargetUrl } from "./address-policy.ts";
import type { Fault } from "./errors.ts";
import type { EventType } from "./event.ts";
import type { SubscriptionId } from "./ids.ts";
import { checkRequestHeaders } from "./request-headers.ts";
import { longestScheduleMs } from "./schedule.ts";
import { checkStorableText } from "./text.ts";

/** Append-only; the number in the proto and in the database is the place in the list plus one. */
export const SUBSCRIPTION_STATES = ["ENABLED", "PAUSED", "DISABLED"] as const;
export type SubscriptionState = (typeof SUBSCRIPTION_STATES)[number];

export const SUBSCRIPTION_ORDERINGS = ["PER_USER", "NONE"] as const;
export type SubscriptionOrdering = (typeof SUBSCRIPTION_ORDERINGS)[number];

export const CONTENT_TYPES = ["JSON", "CLOUDEVENTS_JSON"] as const;
export type ContentType = (typeof CONTENT_TYPES)[number];

export const DEFAULT_ORDERING: SubscriptionOrdering = "PER_USER";

/** What a creator chooses. */
export type SubscriptionSpec = {
  readonly url: string;
  readonly eventTypes: readonly EventType[];
  readonly description: string;
  readonly ordering: SubscriptionOrdering;
  readonly contentType: ContentType;
  readonly headers: Readonly<Record<string, string>>;
  /** Requests at once; undefined: what the operator allows. */
  readonly maxInFlight?: number | undefined;
  readonly requestsPerSecond?: number | undefined;
  /** Delays before the second, third … attempt, in milliseconds; undefined: the operator's schedule. */
  readonly retryDelaysMs?: readonly number[] | undefined;
};

/** What an operator allows. */
export type SubscriptionBounds = {
  readonly addressPolicy: AddressPolicy;
  /** What a retry schedule must stay below, with its jitter. */
  readonly maxPendingMs: number;
  /** For how long an event's payload is kept. */
  readonly payloadRetentionMs: number;
};

export type Subscription = Omit<SubscriptionSpec, "headers"> & {
  readonly id: SubscriptionId;
  readonly tenantId: string;
  readonly state: SubscriptionState;
  readonly stateReason: string;
  readonly headerNames: readonly string[];
  /** While a rotation lasts: when the last of the replaced secrets stops signing. */
  readonly replacedSecretExpiresAt: Date | undefined;
  readonly createdAt: Date;
  readonly updatedAt: Date;
  readonly lastSuccessAt: Date | undefined;
  readonly lastFailure: { readonly at: Date; readonly detail: string } | undefined;
  readonly consecutiveFailures: number;
};

const MOST_RETRIES = 50;
const SHORTEST_DELAY_MS = 1_000;

export function checkSubscription(
  spec: SubscriptionSpec,
  { addressPolicy, maxPendingMs }: SubscriptionBounds,
  path: string,
  faults: Fault[],
): void {
  const verdict = judgeTargetUrl(spec.url, addressPolicy);
  if (spec.url === "") faults.push({ path: `${path}.url`, description: "is required" });
  else if (verdict.kind === "refused") faults.push({ path: `${path}.url`, description: verdict.reason });
  spec.eventTypes.forEach((type, i) => {
    if (spec.eventTypes.indexOf(type) < i) {
      faults.push({ path: `${path}.event_types[${i}]`, description: "is named twice" });
    }
  });
  checkStorableText(spec.description, 1024, `${path}.description`, faults);
  checkWhole(spec.maxInFlight, 1_000, `${path}.max_in_flight`, faults);
  checkWhole(spec.requestsPerSecond, 10_000, `${path}.rate_limit.requests_per_second`, faults);
  checkRequestHeaders(spec.headers, `${path}.headers`, faults);
  checkRetryDelays(spec.retryDelaysMs ?? [], maxPendingMs, `${path}.retry_policy.schedule`, faults);
}

function checkRetryDelays(delays: readonly number[], maxPendingMs: number, path: string, faults: Fault[]): void {
  if (delays.length > MOST_RETRIES) faults.push({ path, description: `must have at most ${MOST_RETRIES} delays` });
  delays.forEach((delay, i) => {
    if (delay < SHORTEST_DELAY_MS) faults.push({ path: `${path}[${i}]`, description: "must be at least 1s" });
  });
  if (longestScheduleMs(delays) >= maxPendingMs) {
    const days = (maxPendingMs / 86_400_000).toFixed(1);
    faults.push({
      path,
      description: `must end within ${days} days, its delays stretched by 1.2 (NUNCIO_MAX_PENDING)`,
    });
  }
}

function checkWhole(value: number | undefined, most: number, path: string, faults: Fault[]): void {
  if (value === undefined || (value >= 1 && value <= most)) return;
  faults.push({ path, description: `must be 1–${most.toLocaleString("en-US")}` });
}
