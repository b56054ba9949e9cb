import { type AddressPolicy, judgeTargetUrl } from "./address-policy.ts";
import type { Fault } from "./errors.ts";
import type { EventType } from "./event.ts";
import type { SubscriptionId } from "./ids.ts";
import { checkRequestHeaders } from "./request-headers.ts";
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
};

export type Subscription = Omit<SubscriptionSpec, "headers"> & {
  readonly id: SubscriptionId;
  readonly tenantId: string;
  readonly state: SubscriptionState;
  readonly stateReason: string;
  readonly headerNames: readonly string[];
  readonly createdAt: Date;
  readonly updatedAt: Date;
  readonly lastSuccessAt: Date | undefined;
  readonly lastFailure: { readonly at: Date; readonly detail: string } | undefined;
  readonly consecutiveFailures: number;
};

export function checkSubscription(spec: SubscriptionSpec, policy: AddressPolicy, path: string, faults: Fault[]): void {
  const verdict = judgeTargetUrl(spec.url, policy);
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
}

function checkWhole(value: number | undefined, most: number, path: string, faults: Fault[]): void {
  if (value === undefined || (value >= 1 && value <= most)) return;
  faults.push({ path, description: `must be 1–${most.toLocaleString("en-US")}` });
}
