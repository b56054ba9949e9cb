import { type DeliveryId, formatDeliveryId, formatSubscriptionId } from "../core/ids.ts";
import { parseRetryAfter } from "../core/retry-after.ts";
import { decide } from "../core/retry-policy.ts";
import type { ClaimedDelivery } from "../store/outbox/claim.ts";
import type { AttemptRecord } from "../store/outbox/record.ts";
import { toRequestHeaders } from "./request-headers.ts";
import { type SendDependencies, send } from "./send.ts";
import { keysAt, type ReadyTarget } from "./targets.ts";

export type DeliverDependencies = SendDependencies & {
  readonly random: () => number;
  readonly schedule: readonly number[];
  readonly maxResponseBytes: number;
  /** Undefined: no traces, and the receiver gets the publisher's `traceparent` as it came. */
  readonly startAttempt?: StartAttempt;
};

/** What a trace wants to know of an attempt: ids and codes. `parent` is the `traceparent` that came with the event. */
export type StartAttempt = (
  parent: string | null,
  attributes: Readonly<Record<string, string | number>>,
) => {
  readonly traceparent: string | undefined;
  end(fault: string | undefined, attributes: Readonly<Record<string, string | number>>): void;
};

/** A claimed delivery whose payload is there, and when its claim was sent, by our own monotonic clock. */
export type Sendable = ClaimedDelivery & {
  readonly event: NonNullable<ClaimedDelivery["event"]>;
  readonly claimSentAtMs: number;
};

/** What is to be written down, and for how long the receiver asked for silence. */
export type Attempted = { readonly record: AttemptRecord; readonly holdMs: number | undefined };

/**
 * One attempt: signs the stored bytes, sends them, decides what follows. Nothing is written here and no transaction is
 * open; if we crash anywhere in it, the lease ends and the delivery is made again with the same id.
 */
export async function deliver(
  deps: DeliverDependencies,
  delivery: Sendable,
  target: ReadyTarget,
  timeoutMs: number,
): Promise<Attempted> {
  const deliveryId = formatDeliveryId(delivery.eventKey, target.subscriptionUuid);
  const { event, attempt: number } = delivery;
  const ids = { "nuncio.delivery_id": deliveryId, "nuncio.event_id": event.id, "nuncio.attempt": number };
  const span = deps.startAttempt?.(event.traceparent, ids);
  try {
    const traceparent = span?.traceparent ?? event.traceparent;
    const attempted = await attempt(deps, delivery, target, { deliveryId, traceparent, timeoutMs });
    const { kind, httpStatus } = attempted.record.outcome;
    const status = httpStatus === undefined ? {} : { "http.response.status_code": httpStatus };
    span?.end(kind === "delivered" ? undefined : kind, status);
    return attempted;
  } catch (error) {
    span?.end("internal", {});
    throw error;
  }
}

async function attempt(
  deps: DeliverDependencies,
  delivery: Sendable,
  target: ReadyTarget,
  { deliveryId, traceparent, timeoutMs }: { deliveryId: DeliveryId; traceparent: string | null; timeoutMs: number },
): Promise<Attempted> {
  const startedAtMs = databaseTimeMs(deps, delivery);
  const body = Buffer.from(delivery.event.body);
  const headers = toRequestHeaders(keysAt(target, startedAtMs), {
    eventId: delivery.event.id,
    deliveryId,
    attempt: delivery.attempt,
    redrive: delivery.redrive,
    timestamp: Math.floor(startedAtMs / 1000),
    body,
    traceparent,
    contentType: target.contentType,
    headers: target.headers,
  });

  const { maxResponseBytes } = deps;
  const { outcome, phases, durationMs, retryAfter } = await send(deps, {
    destination: target.destination,
    headers,
    body,
    timeoutMs,
    maxResponseBytes,
  });

  const endedAtMs = databaseTimeMs(deps, delivery);
  const decision = decide(outcome, {
    failures: delivery.failures,
    schedule: target.retryDelaysMs ?? deps.schedule,
    random: deps.random(),
    remainingMs: delivery.expiresAtMs - endedAtMs,
  });
  const record = {
    subscriptionKey: delivery.subscriptionKey,
    eventKey: delivery.eventKey,
    leaseToken: delivery.leaseToken,
    userKey: delivery.userKey,
    tenantKey: target.tenantKey,
    number: delivery.attempt,
    startedAtMs,
    durationMs,
    phases,
    outcome,
    decision,
    ids: { deliveryId, eventId: delivery.event.id, subscriptionId: formatSubscriptionId(target.subscriptionUuid) },
  };
  return { record, holdMs: parseRetryAfter(outcome.httpStatus, retryAfter, endedAtMs) };
}

/** The database's clock: what it said at the claim, and the monotonic time since. A wrong clock of ours cannot matter. */
export function databaseTimeMs({ nowMs }: Pick<SendDependencies, "nowMs">, delivery: Sendable): number {
  return delivery.claimedAtMs + (nowMs() - delivery.claimSentAtMs);
}
